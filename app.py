"""python app.py [--model STUDENT]

A page to ask a student about micrographs in a browser (mvaema/page). As it stands it is also the
app of a Space: a folder with this file and a student's files. docs/page.md explains both.
"""

import sys
from pathlib import Path

from mvaema.page.running import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
