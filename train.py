"""accelerate launch train.py --dataset ../micrographs --output_dir runs/first

Trains a student on a micrograph dataset and keeps the checkpoint with the lowest validation loss
as a model repository. On one CPU `python train.py ...` does the same.
"""

import sys

from transformers import HfArgumentParser

from mvaema.training import Recipe, train


def main() -> None:
    parser = HfArgumentParser(Recipe, description=__doc__)
    (recipe,) = parser.parse_args_into_dataclasses()
    try:
        print(f"saved to {train(recipe)}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the best checkpoint so far, if any, is in {recipe.output_dir}")


if __name__ == "__main__":
    main()
