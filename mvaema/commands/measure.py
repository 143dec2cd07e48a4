"""mvaema measure particles.tif --output_dir sizes

    mvaema measure ~/micrographs --output_dir sizes --category Particles --workers 2

Measures the sizes of structures in a micrograph, or in all of a folder. Rerun the same command to
resume a run that was stopped, or to add new files. `mvaema measure --help` explains every argument.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.commands.arguments import positive_length
from mvaema.measuring.folder import Settings, measure_folder
from mvaema.measuring.kinds import KINDS
from mvaema.measuring.text import MissingExtra, require_reader


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Measure files. Returns the exit status: 1 after an error, or if no file could be read."""
    args = _parser(prog).parse_args(argv)
    region = tuple(args.region) if args.region else None
    settings = Settings(args.kind, args.category, args.pixel_size_nm, region)
    try:
        require_reader()
        report = measure_folder(args.input, args.output_dir, settings, args.workers)
    except (MissingExtra, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Rerun the same command to resume.", file=sys.stderr)
        return 130
    print(report)
    print(f"Tables, overlays, histograms and methods are in {args.output_dir}.")
    return 0 if report.statuses["unreadable"] < len(report.entries) else 1


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog, description="Measure the sizes of structures in micrographs.", allow_abbrev=False
    )
    add = parser.add_argument
    add("input", metavar="FILE|FOLDER", type=Path, help="a micrograph, or a folder of them")
    add("--output_dir", type=Path, required=True, help="folder of the tables and pictures")
    add("--kind", choices=KINDS, help="what to measure (by --category, else from the picture)")
    add("--category", choices=CATEGORY_CAPTIONS, help="what the micrographs show")
    add(
        "--pixel_size_nm",
        type=positive_length,
        help="length of one pixel in nm (recorded by the instrument, else read from the scale bar)",
    )
    add(
        "--region",
        type=int,
        nargs=4,
        metavar=("LEFT", "UPPER", "RIGHT", "LOWER"),
        help="measure only this part of each image, in pixels",
    )
    add("--workers", type=int, default=1, help="processes (1)")
    return parser
