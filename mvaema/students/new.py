"""A new student, from scratch or from encoders: its shapes, tokenizer, questions and categories."""

from collections.abc import Iterable, Mapping

from configuration_mvaema import CATEGORY_CAPTIONS, PRESETS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.students.warm_start import from_encoders
from processing_mvaema import MVaEMaProcessor, train_tokenizer


def new_student(
    rows: Iterable[Mapping],
    captions: Mapping[str, str],
    *,
    preset: str = "paper",
    vision: str | None = None,
    vision_layers: list[int] | None = None,
    text: str | None = None,
    tokenizer: str | None = None,
    vocab_size: int = 4096,
    config_overrides: str | None = None,
) -> MVaEMaModel:
    """A student that has yet to be trained, with its processor.

    Its questions, and its categories where they are a lab's own, are those of the data. The
    weights are drawn from torch's global random state.

    Args:
        rows: of the micrograph schema; the columns `qa` and `scale_bar` are read.
        captions: category to the caption that names it.
        preset: the shapes, a key of `PRESETS`. A BERT that is given must fit them.
        vision: folder or Hub id of the vision model that the student sees with.
        vision_layers: its hidden states that are put together; None for the last one.
        text: folder or Hub id of a BERT to start the text stack from, with its tokenizer.
        tokenizer: name or folder of any tokenizer; else one is trained on the texts of the data.
        vocab_size: most tokens of a tokenizer that is trained.
        config_overrides: fields of the configuration, as in "itm_weight=0,image_size=384".

    Raises:
        ValueError: encoders, tokenizer and preset do not fit together.
    """
    if text is not None and tokenizer is not None:
        raise ValueError("--text brings its own tokenizer: leave --tokenizer out.")
    questions, scale_bars, answers = {}, set(), []
    for row in rows:
        questions |= {qa["question_id"]: qa["question"] for qa in row["qa"]}
        answers += [qa["answer"] for qa in row["qa"] if qa["outcome"] == "ok"]
        if row["scale_bar"]:
            scale_bars.add(row["scale_bar"])
    fields = _fields(preset, questions, captions, config_overrides, vision)
    if vision_layers is not None:
        fields["vision_feature_layer"] = vision_layers
    if text is not None:
        return from_encoders(vision, text, **fields)
    config = MVaEMaConfig(**fields)
    limit = config.max_position_embeddings
    if tokenizer is None:
        prompts = [MVaEMaProcessor.prompt("?", scale_bar=bar) for bar in sorted(scale_bars)]
        named = sorted(set(captions.values()))
        texts = [*questions.values(), *named, config.category_question, *prompts, *answers]
        tokenizer = train_tokenizer(texts, vocab_size, limit)
    if vision is not None:
        return from_encoders(vision, tokenizer=tokenizer, **fields)
    processor = MVaEMaProcessor.from_tokenizer(tokenizer, config.image_size, limit)
    model = MVaEMaModel(MVaEMaConfig(**fields, **processor.token_fields()))
    model.processor = processor
    return model


def _fields(
    preset: str,
    questions: dict[str, str],
    captions: Mapping[str, str],
    overrides: str | None,
    vision: str | None,
) -> dict:
    """Fields of the configuration; those of its tokens are still missing."""
    fields = {**PRESETS[preset], "questions": questions}
    if vision is not None and "vision_config" not in fields:
        # The layers of a preset's ViT, which the vision model replaces.
        fields.pop("num_image_layers", None)
    if vision is not None:
        fields.pop("vision_config", None)
    if not captions.keys() <= CATEGORY_CAPTIONS.keys():
        fields["categories"] = dict(captions)  # a lab's own
    if overrides:
        overridden = MVaEMaConfig(**fields)
        overridden.update_from_string(overrides)
        names = [entry.split("=")[0] for entry in overrides.split(",")]
        fields |= {name: getattr(overridden, name) for name in names}
    return fields
