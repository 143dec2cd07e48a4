"""python eval.py --model runs/first --dataset data/sem --output_dir runs/first-report

Scores a trained student and writes a report. The same as `mvaema eval`.
"""

import sys

from mvaema.commands.eval import main

if __name__ == "__main__":
    sys.exit(main())
