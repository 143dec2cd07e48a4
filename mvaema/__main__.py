"""mvaema COMMAND ...   (or python -m mvaema COMMAND ...)

Dispatches to the modules of `mvaema.commands`; `mvaema COMMAND --help` documents each. Only the
module of the command that was named is imported.
"""

import importlib
import sys
from collections.abc import Sequence

# Name -> what it does, in the order a lab uses them.
COMMANDS = {
    "build": "micrograph files to a dataset",
    "folds": "check or hold out folds that share no specimen",
    "synthetic": "render a dataset of simulated micrographs",
    "teach": "ask a large vision model about each micrograph",
    "train": "train a student, or one per fold",
    "eval": "score a student and write the report",
    "ask": "ask a student about a micrograph",
    "push": "upload a student to the Hugging Face Hub",
    "demo": "all stages on simulated micrographs, in a few minutes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command. Returns its exit status, 2 where there is no such command."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        command = importlib.import_module(f"mvaema.commands.{argv[0]}")
        return command.main(argv[1:], prog=f"mvaema {argv[0]}")
    asked = bool(argv) and argv[0] in ("-h", "--help")
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    usage = "\n".join(["usage: mvaema COMMAND ...", "", *lines, "", "mvaema COMMAND --help"])
    if argv and not asked:
        usage += f"\n\nerror: there is no command {argv[0]!r}."
    print(usage, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
