"""The student that a run keeps: a complete model repository, or LoRA adapters, at any moment."""

from pathlib import Path

import torch
from accelerate import Accelerator

from mvaema.students.repository import save_repository
from mvaema.training.recipe import Recipe


def keep_student(model: torch.nn.Module, recipe: Recipe, accelerator: Accelerator) -> None:
    """Replace the student in `recipe.output_dir`; every process calls this.

    Args:
        model: as accelerate has prepared it.
    """
    state = accelerator.get_state_dict(model)  # all processes have a part where it is sharded
    if not accelerator.is_main_process:
        return
    if recipe.save_dtype == "float16":
        state = {n: w.half() if w.is_floating_point() else w for n, w in state.items()}
    student, folder = accelerator.unwrap_model(model), Path(recipe.output_dir)
    if recipe.lora:
        from mvaema.students.lora import save_adapters

        save_adapters(student, folder, recipe.model)
    else:
        save_repository(student, folder, state)
