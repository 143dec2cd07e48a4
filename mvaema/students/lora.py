"""LoRA adapters: a trained student learns a new domain by a few percent of its weights.

What is special about it:
- one list of targets for every preset: the attentions and mlps of the image encoder and of the text
  stack (docs/own_images.md has what other choices came to). The three modes of the text stack share
  their modules, so each is wrapped once, what one mode learns the others have, and merging is
  exact;
- the heads that the losses end in (`itm_head`, `image_proj`, `text_proj`) are small and trained
  whole. Everything else, the ITC temperature and the embeddings among it, stays the base's (the
  temperature is no module, which is all that peft can save whole);
- a student is loaded here and nowhere else, adapters merged, and by this project's own classes:
  no code of a Hub repository is run.
"""

import os
from pathlib import Path

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
)
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from configuration_mvaema import MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.students.repository import replacing_files, save_repository
from processing_mvaema import MVaEMaProcessor

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
TRAINED_WHOLE = ["itm_head", "image_proj", "text_proj"]


def add_adapters(model: MVaEMaModel, rank: int, alpha: int, dropout: float) -> PeftModel:
    """The student with fresh adapters; they and `TRAINED_WHOLE` are what is trained.

    At first it computes what `model` does. `model` itself is changed: its layers are wrapped.

    Args:
        rank: of each adapter.
        alpha: an adapter's output is scaled by `alpha / rank`.
        dropout: of the adapters' inputs, in training.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=TARGETS,
        modules_to_save=TRAINED_WHOLE,
    )
    return get_peft_model(model, config)


def save_adapters(model: PeftModel, folder: Path, base: str) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, each replaced atomically.

    Args:
        base: folder or Hub id of the student below, which is needed to load the adapters; a folder
            is written down by its absolute path.
    """
    path = Path(base)
    model.peft_config["default"].base_model_name_or_path = (
        str(path.resolve()) if path.is_dir() else base
    )
    with replacing_files(Path(folder)) as temporary:
        # Embeddings are no target. Asked to find out by itself, peft would look the base up.
        model.save_pretrained(temporary, save_embedding_layers=False)
        (
            temporary / "README.md"
        ).unlink()  # peft's blank form; `mvaema/students/hub.py` writes a card


def load_student(source: str | os.PathLike) -> MVaEMaModel:
    """A complete student with its processor, on the CPU, every weight trainable.

    Args:
        source: folder or Hub id of a student or of adapters, which are merged.

    Raises:
        FileNotFoundError: a folder, or the one that adapters are for, holds no student.
        OSError: there is no such repository, or the Hub cannot be reached.
        ValueError: it is another kind of model, or its weights do not fit its configuration.
    """
    complete = complete_model(source)
    if model_type(complete) != MVaEMaConfig.model_type:
        raise ValueError(
            f"{complete} is no student of this project: its model_type is "
            f"{model_type(complete)!r}, not {MVaEMaConfig.model_type!r}."
        )
    try:
        model = MVaEMaModel.from_pretrained(complete)
    except RuntimeError as error:  # of a shape; transformers has logged which
        raise ValueError(
            f"the weights in {complete} have other shapes than its config.json asks for (listed "
            "above): they belong to another preset, or to another version of this project."
        ) from error
    model = merge_adapters_into(model, source)
    model.processor = MVaEMaProcessor.from_pretrained(complete)
    return model.requires_grad_(True)  # peft has frozen it


def merge_adapters(folder: Path, output: Path) -> None:
    """The student with the adapters in `folder` merged, as a complete repository in `output`.

    Files of an earlier merge are replaced.

    Raises:
        ValueError: `folder` holds no adapters, or `output` does.
        Whatever `load_student` raises.
    """
    if base_of(folder) is None:
        raise ValueError(f"{folder} holds no adapters (no adapter_config.json) to merge.")
    if (Path(output) / "adapter_config.json").exists():
        raise ValueError(f"{output} holds adapters; choose another folder for the merged student.")
    save_repository(load_student(folder), Path(output))


def base_of(source: str | os.PathLike) -> str | None:
    """Folder or Hub id that the adapters in `source` are for; None where it holds no adapters."""
    if find_adapter_config_file(str(source)) is None:
        return None
    return PeftConfig.from_pretrained(str(source)).base_model_name_or_path


def complete_model(source: str | os.PathLike) -> str:
    """The model that the adapters in `source` are for (by way of other adapters, if they build on
    such); `source` itself where it holds none.

    Raises:
        FileNotFoundError: it is not where the adapters say.
    """
    source = str(source)
    while (base := base_of(source)) is not None:
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise FileNotFoundError(
                f"{source} holds adapters for {base}, which is not there; write the right folder "
                "or Hub id into base_model_name_or_path of its adapter_config.json."
            )
        source = base
    return source


def model_type(source: str) -> str | None:
    """The kind of model that the folder or Hub id `source` holds, in transformers' words.

    Raises:
        FileNotFoundError: the folder holds no model.
        OSError: there is no such repository, or the Hub cannot be reached.
    """
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(
            f"{source} holds no model: there is neither a config.json nor an adapter_config.json. "
            "The folder of a training run holds one after its first epoch."
        )
    return PreTrainedConfig.get_config_dict(source)[0].get("model_type")


def merge_adapters_into(model: PreTrainedModel, source: str | os.PathLike) -> PreTrainedModel:
    """`model`, loaded from `complete_model(source)`, with the adapters in `source` merged.

    Raises:
        ValueError: the adapters do not fit the model.
    """
    source = str(source)
    base = base_of(source)
    if base is None:
        return model
    model = merge_adapters_into(model, base)
    problem = f"the adapters in {source} do not fit {base}; they were made for another model"
    try:
        tuned = PeftModel.from_pretrained(model, source)
    except (RuntimeError, ValueError) as error:  # of a shape, or no layer by a target's name
        raise ValueError(f"{problem}: {error}") from error
    # Of names that one side lacks, peft says nothing, or only warns.
    expected = get_peft_model_state_dict(tuned, save_embedding_layers=False).keys()
    found = load_peft_weights(source, device="cpu").keys()
    differing = (expected - found) | {name for name in found - expected if "lora_" in name}
    if differing:
        raise ValueError(
            f"{problem}: {len(differing)} weights are in one of the two only, "
            f"{', '.join(sorted(differing)[:3])} among them."
        )
    return tuned.merge_and_unload()
