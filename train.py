"""accelerate launch train.py --dataset data/micrographs --output_dir runs/first

The same as `mvaema train`, as a script that accelerate and torchrun can launch on several GPUs.
`python train.py --help` documents every setting.
"""

import sys

from mvaema.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
