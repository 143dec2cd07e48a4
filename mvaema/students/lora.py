"""LoRA adapters: a trained student learns a new domain by a few percent of its weights.

What is special about it:
- one pattern of targets for every preset: the attentions and mlps of the student's own layers, in
  image encoder and text stack, and the projection of a vision model's features (docs/own_images.md
  compares other choices). A pre-trained vision model itself stays as it is, whatever its layers are
  called. The three modes of the text stack share their modules, so each is wrapped once, what one
  mode learns the others have, and merging is exact;
- the heads that the losses end in (`itm_head`, `image_proj`, `text_proj`) are small and trained
  whole. Everything else stays the base's, including the embeddings and the ITC temperature (which
  is not a module, and peft can save nothing else whole).
"""

import os
from pathlib import Path

from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
)
from transformers import PreTrainedModel

from modeling_mvaema import MVaEMaModel
from mvaema.students.loading import base_of, load_student
from mvaema.students.repository import replacing_files, save_repository

# A regular expression, of whole names.
TARGETS = (
    r"(image_encoder|text_stack)\.layers\.\d+\.\w+\.(q_proj|k_proj|v_proj|o_proj|fc1|fc2)"
    r"|image_encoder\.projection"
)
TRAINED_WHOLE = ["itm_head", "image_proj", "text_proj"]


def add_adapters(model: MVaEMaModel, rank: int, alpha: int, dropout: float) -> PeftModel:
    """The student with fresh adapters; only they and `TRAINED_WHOLE` are trained.

    Until then it computes what `model` does. `model` itself is changed: its layers are wrapped.

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
        # AutoPeftModelForFeatureExtraction loads the base with AutoModel, which a student is.
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    return get_peft_model(model, config)


def save_adapters(model: PeftModel, folder: Path, base: str) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, each replaced atomically.

    Args:
        base: folder or Hub id of the student below, which is needed to load the adapters. A folder
            is recorded by its absolute path.
    """
    path = Path(base)
    model.peft_config["default"].base_model_name_or_path = (
        str(path.resolve()) if path.is_dir() else base
    )
    with replacing_files(Path(folder)) as temporary:
        # Embeddings are no target. Left to find out by itself, peft would look the base up.
        model.save_pretrained(temporary, save_embedding_layers=False)
        # peft's blank form; students/card.py writes the card.
        (temporary / "README.md").unlink()


def merge_adapters(folder: Path, output: Path) -> None:
    """The student with the adapters in `folder` merged, as a complete repository in `output`.

    Files of an earlier merge are replaced.

    Raises:
        ValueError: `folder` holds no adapters, or `output` does.
        Whatever `load_student` raises.
    """
    if base_of(folder) is None:
        raise ValueError(f"{folder} holds no adapters to merge (no adapter_config.json).")
    if (Path(output) / "adapter_config.json").exists():
        raise ValueError(f"{output} holds adapters. Choose another folder for the merged student.")
    save_repository(load_student(folder), Path(output))


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
    except (RuntimeError, ValueError) as error:  # a wrong shape, or no layer of a target's name
        raise ValueError(f"{problem}: {error}") from error
    # Where one side lacks a name, peft is silent or only warns.
    expected = get_peft_model_state_dict(tuned, save_embedding_layers=False).keys()
    found = load_peft_weights(source, device="cpu").keys()
    differing = (expected - found) | {name for name in found - expected if "lora_" in name}
    if differing:
        raise ValueError(
            f"{problem}: {len(differing)} weights are in only one of the two, such as "
            f"{', '.join(sorted(differing)[:3])}."
        )
    return tuned.merge_and_unload()
