"""The container's files, as far as they can be checked where no engine can build them."""

import fnmatch
import json
import re
import shlex

from support import ROOT

from mvaema.commands.serve import _parser

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# Instructions, with continuation lines joined and comments left out.
LINES = re.sub(r"^#.*\n", "", TEXT, flags=re.M).replace("\\\n", " ").splitlines()
STEPS = [tuple(line.split(None, 1)) for line in LINES if line.strip()]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def test_what_is_copied_exists_and_reaches_the_engine():
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = [source for rest in arguments("COPY") for source in shlex.split(rest)[:-1]]
    if "*_mvaema.py" in copied:
        copied += [path.name for path in ROOT.glob("*_mvaema.py")]
        copied.remove("*_mvaema.py")
    assert len(copied) > 15
    for source in copied:
        assert (ROOT / source).exists(), source
        top = source.split("/")[0]
        assert any(fnmatch.fnmatch(top, pattern) for pattern in allowed), source
    # All that the model and the package need is among them.
    needed = {path.name for path in ROOT.glob("*_mvaema.py")} | {"mvaema", "model.safetensors"}
    assert needed <= set(copied)
    assert not {"data", ".git", "runs", "tests"} & set(copied)


def test_it_runs_the_server_as_nobody_without_a_key():
    (entry,) = arguments("ENTRYPOINT")
    command = json.loads(entry)
    assert command[:4] == ["python", "-m", "mvaema", "serve"]
    args = _parser("mvaema serve").parse_args(command[4:])
    assert (args.host, args.port) == ("0.0.0.0", 8000)
    assert arguments("USER") == ["10001"]
    names = [name for name, _ in STEPS]
    assert (
        names.index("USER") < names.index("ENTRYPOINT")
        and "COPY" not in names[names.index("USER") :]
    )
    assert "MVAEMA_API_KEY" not in "\n".join(LINES)
    assert any("HF_HUB_OFFLINE=1" in rest for rest in arguments("ENV"))
    (check,) = arguments("HEALTHCHECK")
    assert f":{args.port}/health" in check
    compile(json.loads(check[check.index("[") :])[2], "health check", "exec")
