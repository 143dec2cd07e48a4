"""mvaema train --dataset data/sem --output_dir runs/first

Trains a student on a micrograph dataset. The student with the lowest validation loss is kept, as a
model repository. `--recipe recipes/paper.yaml` reads settings from a file; flags override them.
Rerun the same command to resume a run that was killed. On several GPUs use `accelerate launch
train.py` with the same flags.
"""

import sys
from collections.abc import Sequence

import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from mvaema.training.loop import TrainingFailed
from mvaema.training.recipe import read_recipe
from mvaema.training.run import train
from mvaema.training.signals import Interrupted


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    disable_progress_bar()  # transformers shows one whenever it saves, in the middle of ours
    try:
        recipe = read_recipe(argv, __doc__.partition("\n\n")[2], prog)
        if recipe.cross_validation:
            # Here: scoring needs the extra `eval`, which training does without.
            from mvaema.evaluation.cross_validation import cross_validate

            folder = cross_validate(recipe)
        else:
            folder = train(recipe)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 128 + error.signal
    except ImportError as error:
        print(f'error: {error}. Try: pip install -e ".[eval,timm,tracking]"', file=sys.stderr)
        return 1
    except (OSError, ValueError, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"saved to {folder}")
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0
