"""mvaema COMMAND ...   (or python -m mvaema COMMAND ...)

Dispatches to the modules of `mvaema.commands`; `mvaema COMMAND --help` documents each. Only the
module of the command that was named is imported.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """What a command does, and the extra of pyproject.toml that it needs."""

    purpose: str
    extra: str


# In the order a lab uses them.
COMMANDS = {
    "build": Command("turn micrograph files into a dataset", "train,microscopy"),
    "folds": Command("hold out micrographs that share no specimen with the others", "train"),
    "measure": Command("measure the sizes of structures in micrographs", "measuring,microscopy"),
    "synthetic": Command("render a dataset of simulated micrographs", "train"),
    "teach": Command("ask a large vision model about each micrograph", "teacher"),
    "eyes": Command("write a small pre-trained vision model, without a model hub", "lite"),
    "train": Command("train a student, or one per fold", "train"),
    "eval": Command("score a student and write the report", "eval"),
    "ask": Command("ask a student about micrographs", "train,microscopy"),
    "serve": Command("answer questions over the network, as OpenAI's API does", "serve"),
    "export": Command("write a student that answers without torch", "onnx"),
    "push": Command("upload a student to the Hugging Face Hub", "train"),
    "demo": Command("run all stages on simulated micrographs", "eval"),
}


def usage() -> str:
    lines = [f"  {name:<10} {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: mvaema COMMAND ...", "", *lines, "", "mvaema COMMAND --help"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command. Returns its exit status; 2 where there is no such command."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        told = f"\n\nerror: there is no command {name!r}." if name else ""
        print(usage() + told, file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(f"mvaema.commands.{name}")
        return command.main(rest, prog=f"mvaema {name}")
    except ModuleNotFoundError as error:
        extra = COMMANDS[name].extra
        print(
            f'error: {error}. `mvaema {name}` needs: pip install -e ".[{extra}]"', file=sys.stderr
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
