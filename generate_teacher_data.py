"""python generate_teacher_data.py --images data/sem --output_dir teacher --teacher_model NAME

Micrographs in, instruction dataset out: the same as `mvaema teach`.
"""

import sys

from mvaema.commands.teach import main

if __name__ == "__main__":
    sys.exit(main())
