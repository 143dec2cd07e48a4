"""A student as ONNX graphs, in a folder that a computer without torch answers questions with.

    vision.onnx     pixel_values -> image_embeds, and each layer's keys and values of the images
    text.onnx       input_ids, attention_mask -> text_embeds, and the scale of ITC's similarities
    grounded.onnx   a text and its image -> match_logits, and keys and values of the text
    decoder.onnx    one word for each row, given all of these and the words before -> logits
    weights.bin     the weights of all four

What is special about it:
- the graphs are traced from the model's own modules (torch.onnx), so any vision model and any shape
  of the text stack can be exported;
- batch and lengths are dynamic, and the cache starts empty: one decoder graph writes all words;
- the folder is complete: graphs, tokenizer, configurations, the student's card, and the runner with
  the files that it imports (`onnx_mvaema.py`).
"""

import contextlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from generation_mvaema import MVaEMaCache, MVaEMaMemory
from layers_mvaema import Memory
from modeling_mvaema import MVaEMaModel
from mvaema.files import move_folder, write_text
from mvaema.students.exported import is_exported
from mvaema.students.graph_files import remove_notes, share_weights, store_halves
from onnx_mvaema import GRAPHS, WEIGHTS

PRECISIONS = ("float32", "float16", "int8")
ROOT = Path(__file__).parents[2]
RUNNER = ("onnx", "candidates", "lengths", "pixels", "prompt")
REQUIREMENTS = ("numpy>=2.0", "onnxruntime>=1.20", "pillow>=11.0", "tokenizers>=0.21")
# Of a checkpoint's generation settings, those that the runner follows.
FOLLOWED = {
    *("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("max_new_tokens", "use_cache", "decoding", "transformers_version"),
}
DYNAMIC = torch.export.Dim.DYNAMIC


class Vision(nn.Module):
    """Images to their embeddings, keys and values."""

    def __init__(self, model: MVaEMaModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        seen = self.model.get_image_features(pixel_values)
        images = self.model.text_stack.project_images(seen.last_hidden_state)
        return seen.pooler_output, *_in_order(images)


class Text(nn.Module):
    """Statements to their embeddings; the second output is what ITC multiplies similarities by."""

    def __init__(self, model: MVaEMaModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        texts = self.model.get_text_features(input_ids, attention_mask)
        return texts.pooler_output, 1 / self.model.temperature


class Grounded(nn.Module):
    """Texts that attend to their image: its matching logit, and what the decoder attends to."""

    def __init__(self, model: MVaEMaModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor,
        image_keys: list[Tensor],
        image_values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        memory = Memory(tuple(zip(image_keys, image_values, strict=True)), image_index)
        stack = self.model.text_stack
        packed, texts = stack(input_ids, attention_mask, memory)
        states = texts.unpack(packed)
        logits = self.model.itm_head(states[:, 0]).squeeze(-1)
        own = [layer.cross_attn.keys_and_values(states) for layer in stack.layers]
        return logits, *_in_order(own)


class Decoder(nn.Module):
    """One more word for each row, with a cache that is handed in and out."""

    def __init__(self, model: MVaEMaModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        decoder_input_ids: Tensor,
        question_mask: Tensor,
        image_keys: list[Tensor],
        image_values: list[Tensor],
        question_keys: list[Tensor],
        question_values: list[Tensor],
        past_keys: list[Tensor],
        past_values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        images = tuple(zip(image_keys, image_values, strict=True))
        cache = MVaEMaCache.empty(self.model.config, images)
        for i in range(len(images)):
            cache.self_attention_cache.update(past_keys[i], past_values[i], i)
            cache.cross_attention_cache.update(question_keys[i], question_values[i], i)
            cache.is_updated[i] = True
        # With the cache filled, only the shape of the question's states is read.
        questions = question_keys[0].transpose(1, 2).flatten(2)
        memory = MVaEMaMemory(questions, images, questions)
        logits = self.model.decode(decoder_input_ids, memory, question_mask, cache)
        layers = cache.self_attention_cache.layers
        return logits[:, -1], *_in_order([(layer.keys, layer.values) for layer in layers])


def export_onnx(
    model: MVaEMaModel, folder: Path, precision: str = "float32", card: Path | None = None
) -> None:
    """Write a student as ONNX graphs with all that runs them. What is in `folder` is replaced.

    Args:
        model: with its processor.
        precision: one of `PRECISIONS`, of the weights: "float16" halves what is stored, and
            computes in float32; "int8" computes matrix products of the text stack and of
            transformers in 8 bits (dynamic quantisation), convolutions in float32.
        card: the student's README.md, to go with it.

    Raises:
        FileExistsError: the folder holds something else than an exported student.
        ValueError: the student has parts that the runner does not know.
    """
    _check(model)
    if folder.exists() and any(folder.iterdir()) and not is_exported(folder):
        raise FileExistsError(f"{folder} is not empty and holds no exported student.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".exporting-") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        graphs = {name: new / f"{name}.onnx" for name in GRAPHS}
        for name, path in graphs.items():
            _write_graph(model, name, path, precision)
        share_weights(list(graphs.values()), new / WEIGHTS)
        _write_rest(model, new, precision, card)
        move_folder(new, folder)


def _check(model: MVaEMaModel) -> None:
    config = model.config
    for name, wanted in (
        ("instruction_aware", False),
        ("use_self_attention", True),
        ("use_cross_attention", True),
        ("use_causal_mask", True),
    ):
        if getattr(config, name) != wanted:
            raise ValueError(
                f"a student with {name}={not wanted} cannot be exported: the graphs share an "
                "image's keys and values among questions, and keep those of written words."
            )
    settings = set(model.generation_config.to_diff_dict()) - FOLLOWED
    if settings:
        raise ValueError(
            f"generation_config.json sets {', '.join(sorted(settings))}, which the runner does not "
            "follow. Remove it from the checkpoint, or ask the student with torch."
        )


def _in_order(keys_and_values) -> tuple[Tensor, ...]:
    """Keys of all layers, then their values."""
    keys, values = zip(*keys_and_values, strict=True)
    return *keys, *values


def _names(of: str, layers: int) -> list[str]:
    return [f"{of}_{kind}_{i}" for kind in ("keys", "values") for i in range(layers)]


def _write_graph(model: MVaEMaModel, name: str, path: Path, precision: str) -> None:
    """Trace one of the four graphs and store it in a precision."""
    config, layers = model.config, model.config.num_text_layers
    images, length, past = 2, 5, 3
    rows = 2 * images
    device = {"device": "cpu"}

    def states(count: int, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        # Each a tensor of its own: inputs that are one tensor would become one input.
        shape = (count, config.num_attention_heads, tokens, config.head_dim)
        keys, values = ([torch.zeros(shape, **device) for _ in range(layers)] for _ in range(2))
        return keys, values

    ids = torch.full((rows, length), config.enc_token_id, **device)
    mask, index = torch.ones_like(ids), torch.arange(rows, **device) // 2
    pixels = torch.zeros(
        images, config.num_channels, config.image_size, config.image_size, **device
    )
    with torch.no_grad():
        tokens = model.eval().image_encoder(pixels).shape[1]
    of_images, of_texts = states(images, tokens), states(rows, length)
    batch, text, cached = {0: DYNAMIC}, {0: DYNAMIC, 1: DYNAMIC}, {0: DYNAMIC, 2: DYNAMIC}
    per_image, per_text = [batch] * layers, [cached] * layers
    module, inputs, shapes, given, returned = {
        "vision": (
            Vision,
            (pixels,),
            (batch,),
            ["pixel_values"],
            ["image_embeds", *_names("image", layers)],
        ),
        "text": (
            Text,
            (ids, mask),
            (text, text),
            ["input_ids", "attention_mask"],
            ["text_embeds", "scale"],
        ),
        "grounded": (
            Grounded,
            (ids, mask, index, *of_images),
            (text, text, batch, per_image, per_image),
            ["input_ids", "attention_mask", "image_index", *_names("image", layers)],
            ["match_logits", *_names("question", layers)],
        ),
        "decoder": (
            Decoder,
            (
                torch.full((rows, 1), config.dec_token_id, **device),
                mask,
                *(*of_images, *of_texts, *states(rows, past)),
            ),
            (batch, text, per_image, per_image, *[per_text] * 4),
            [
                *("decoder_input_ids", "question_mask"),
                *_names("image", layers),
                *_names("question", layers),
                *_names("past", layers),
            ],
            ["logits", *_names("written", layers)],
        ),
    }[name]
    with torch.no_grad(), _quietly():
        torch.onnx.export(
            module(model).eval(),
            inputs,
            path,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=given,
            output_names=returned,
            external_data=False,
            verbose=False,
        )
    remove_notes(path)
    if precision == "float16":
        store_halves(path)
    elif precision == "int8":
        quant_pre_process(path, path, skip_symbolic_shape=True)
        quantize_dynamic(
            path,
            path,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch.onnx tells about its own parts and about torchvision."""
    loggers = {name: logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")}
    levels = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])


def _write_rest(model: MVaEMaModel, folder: Path, precision: str, card: Path | None) -> None:
    """Configurations, tokenizer, card and runner."""
    processor = model.processor
    model.config.to_json_file(folder / "config.json", use_diff=False)
    model.generation_config.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    images = json.loads(processor.image_processor.to_json_string())
    write_text(folder / "processor_config.json", json.dumps({"image_processor": images}, indent=2))
    write_text(folder / "requirements.txt", "\n".join(REQUIREMENTS) + "\n")
    for name in RUNNER:
        shutil.copy(ROOT / f"{name}_mvaema.py", folder)
    told = card.read_text(encoding="utf-8") if card is not None else "# A student of MVaEMa\n"
    write_text(folder / "README.md", f"{told.rstrip()}\n\n{_USE.format(precision=precision)}")


_USE = """## Without torch

This folder holds the student as ONNX graphs, its weights in {precision}. It needs no torch, no
network and no installation of MVaEMa:

```bash
pip install -r requirements.txt
python onnx_mvaema.py micrograph.png -q "How large are the structures?"
```

```python
from onnx_mvaema import OnnxStudent

student = OnnxStudent(".")
print(student.answer("micrograph.png"))
print(student.classify("micrograph.png"))
```

The code (`*_mvaema.py`) is under the Apache License 2.0.
"""
