"""A student, or another model, from a folder or the Hub.

What is special about it:
- students are loaded here and nowhere else, by this project's own classes: no code of a repository
  is run;
- LoRA adapters are merged into the student that they name as their base. peft is imported only
  where there are adapters.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from transformers import PreTrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from configuration_mvaema import PRESETS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.memory import keep_freed_memory
from processing_mvaema import MVaEMaProcessor


def load_student(source: str | os.PathLike, preset: str | None = None) -> MVaEMaModel:
    """A complete student with its processor, on the CPU, every weight trainable.

    Args:
        source: folder or Hub id of a student or of adapters, which are merged.
        preset: the shapes that the student must have, if any.

    Raises:
        FileNotFoundError: the folder, or the base of its adapters, holds no student.
        OSError: there is no such repository, or the Hub cannot be reached.
        ValueError: it is another kind of model, its weights do not fit its configuration, or it
            is of another preset.
    """
    complete = complete_model(source)
    if (found := model_type(complete)) != MVaEMaConfig.model_type:
        raise ValueError(
            f"{complete} is not a student of this project: its model_type is {found!r}, not "
            f"{MVaEMaConfig.model_type!r}."
        )
    try:
        model = MVaEMaModel.from_pretrained(complete)
    except RuntimeError as error:  # of a shape; transformers has logged which
        raise ValueError(
            f"the weights in {complete} do not have the shapes that its config.json asks for "
            "(listed above): they belong to another preset, or to another version of this project."
        ) from error
    if complete != str(source):
        from mvaema.students.lora import merge_adapters_into

        model = merge_adapters_into(model, source)
    model.processor = MVaEMaProcessor.from_pretrained(complete)
    shapes = PRESETS[preset] if preset else {}
    if differing := [
        name for name, value in shapes.items() if getattr(model.config, name) != value
    ]:
        raise ValueError(
            f"{source} is not a student of the preset {preset!r}: it differs in "
            f"{', '.join(differing)}. Leave --preset out, or choose another --model."
        )
    return model.requires_grad_(True)  # peft has frozen it


def load_to_answer(source: str | os.PathLike) -> MVaEMaModel:
    """A student for a process that answers many questions: on the accelerator, if there is one.

    Raises:
        OSError, ValueError: as `load_student`.
    """
    keep_freed_memory()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return load_student(source).to(device).eval()


def complete_model(source: str | os.PathLike) -> str:
    """The model that the adapters in `source` are for, or `source` itself if it holds none.

    Where adapters build on other adapters, these are followed to the model below them all.

    Raises:
        FileNotFoundError: the model is not where the adapters say.
    """
    source = str(source)
    while (base := base_of(source)) is not None:
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise FileNotFoundError(
                f"{source} holds adapters for {base}, which does not exist. Write the right folder "
                "or Hub id into base_model_name_or_path of its adapter_config.json."
            )
        source = base
    return source


def base_of(source: str | os.PathLike) -> str | None:
    """Folder or Hub id that the adapters in `source` are for; None if it holds no adapters."""
    file = find_adapter_config_file(str(source))
    if file is None:
        return None
    return json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"]


def model_type(source: str) -> str | None:
    """The kind of model in the folder or Hub repository `source`, as transformers names it.

    Raises:
        FileNotFoundError: the folder holds no model.
        OSError: there is no such repository, or the Hub cannot be reached.
    """
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(
            f"{source} holds no model: there is neither a config.json nor an adapter_config.json. "
            "The folder of a training run holds a model after its first epoch."
        )
    try:
        return PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    except OSError as error:
        raise OSError(
            f"{source} is no folder here, and no model could be loaded from the Hub by that name: "
            f"{error}"
        ) from error


def weights_fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits that identify a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
