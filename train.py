"""accelerate launch train.py --dataset ../micrographs --output_dir runs/first

Trains a student on a micrograph dataset and keeps the one with the lowest validation loss as a
model repository. `--recipe recipes/paper.yaml` reads settings from a file, which flags override.
A run that was killed goes on by the same command. On one CPU, `python train.py ...` does the same.
"""

import sys

import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from mvaema.training.loop import Interrupted, TrainingFailed, train
from mvaema.training.recipe import read_recipe


def main() -> None:
    disable_progress_bar()  # of each saving, which would tear ours
    try:
        recipe = read_recipe(sys.argv[1:], description=__doc__)
        if recipe.cross_validation:
            # Here: scoring needs the extra `eval`, which training does without.
            from mvaema.evaluation.cross_validation import cross_validate

            folder = cross_validate(recipe)
        else:
            folder = train(recipe)
        print(f"saved to {folder}")
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(128 + error.signal)
    except ModuleNotFoundError as error:
        sys.exit(f'error: {error}; try pip install -e ".[eval,tracking]"')
    except (OSError, ValueError, TrainingFailed) as error:
        sys.exit(f"error: {error}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
