"""python .ci/check_readme.py

Every command that the README and docs/ print exists: make targets, scripts and modules that answer
--help and know the flags they are given, and the configuration files they name.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands(text: str) -> list[str]:
    """The lines of the README's shell blocks, continuation lines joined."""
    blocks = re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", text, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


def problem(command: str) -> str | None:
    """What is wrong with a command, or None."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    for word in words:
        if word.endswith(".yaml") and not (ROOT / word).is_file():
            return f"there is no {word}"
    if words[0] == "make":
        run = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True, cwd=ROOT)
        return run.stderr.strip() or None
    if words[:2] == ["accelerate", "launch"]:
        script = next(i for i, word in enumerate(words) if word.endswith(".py"))
        words = ["python", *words[script:]]
    if words[0] == "torchrun":
        words = ["python", *words[next(i for i, w in enumerate(words) if w.endswith(".py")) :]]
    if words[0] != "python":
        return None  # git, pip, apt-get: not ours
    target = words[1:3] if words[1] == "-m" else words[1:2]
    rest = words[1 + len(target) :]
    if rest and re.fullmatch(r"[a-z]+", rest[0]):
        target = [*target, rest[0]]  # a subcommand has its own help
    run = subprocess.run(
        [sys.executable, *target, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    if run.returncode:
        return (run.stderr.strip() or run.stdout.strip()).splitlines()[-1]
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    unknown = [flag for flag in flags if not re.search(rf"{re.escape(flag)}\b", run.stdout)]
    return f"unknown flags: {', '.join(sorted(unknown))}" if unknown else None


def main() -> None:
    failed = False
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        found = commands(page.read_text(encoding="utf-8"))
        if not found and page.name == "README.md":
            sys.exit("README.md prints no command; has its form changed?")
        problems = {command: message for command in found if (message := problem(command))}
        for command, message in problems.items():
            print(f"{page.name}: {command}\n    {message}")
        print(f"{page.name}: {len(found) - len(problems)} of {len(found)} commands exist")
        failed |= bool(problems)
    sys.exit(failed)


if __name__ == "__main__":
    main()
