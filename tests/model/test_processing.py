"""The processor: every kind of image, lossless text, prompts, counts of what was cut."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

from lengths_mvaema import format_length
from pixels_mvaema import to_8bit
from processing_mvaema import MVaEMaImageProcessor, MVaEMaProcessor

PROSE = (
    "5 ± 2 µm × 10⁻³ Å at 45 °C;\n\tH₂O₂, α–Fe₂O₃ …",
    "line\r\nand  two spaces ",
    "[CLS] and [EOS] are words here",
    " leading space",
    "日本 🔬",
)


@pytest.mark.parametrize("text", PROSE)
def test_the_tokenizer_is_lossless(processor, text):
    ids = processor(answers=text)["labels"][0]
    assert ids[-1] == processor.tokenizer.eos_token_id
    assert processor.decode(ids[:-1]) == text
    # Words that look like special tokens are no commands.
    assert not set(ids[:-1].tolist()) & set(processor.token_fields().values())


def test_special_tokens_frame_each_kind_of_text(processor, images):
    tokens = processor.token_fields()
    inputs = processor(images=images[0], text="What?", answers="wires", statements="A film.")
    assert inputs["input_ids"][0, 0] == tokens["enc_token_id"]
    assert inputs["statement_ids"][0, 0] == tokens["cls_token_id"]
    assert inputs["labels"][0, -1] == tokens["eos_token_id"]
    assert processor.decode(inputs["input_ids"][0], skip_special_tokens=True) == "What?"


def test_batches_are_padded_to_the_longest(processor):
    inputs = processor(text=["What?", "What is it, and why?"], answers=["a", "a longer answer"])
    lengths = inputs["attention_mask"].sum(1)
    assert lengths[0] < lengths[1] == inputs["input_ids"].shape[1]
    assert (inputs["input_ids"][0, lengths[0] :] == processor.tokenizer.pad_token_id).all()
    padding = inputs["labels"][0] == -100
    assert padding.any() and not padding[0]


def _array(dtype, high, shape=(40, 60)):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


GRAY = _array(np.uint8, 256)
KINDS = {
    "L": Image.fromarray(GRAY),
    "RGB": Image.fromarray(np.stack([GRAY] * 3, -1)),
    "RGBA": Image.fromarray(np.stack([*[GRAY] * 3, np.full_like(GRAY, 255)], -1)),
    "LA": Image.fromarray(GRAY).convert("LA"),
    "palette": Image.fromarray(GRAY).convert("P"),
    "1": Image.fromarray(GRAY > 100),
    "I;16": Image.fromarray(GRAY.astype(np.uint16) * 256),
    "I": Image.fromarray(GRAY.astype(np.int32) * 1000),
    "F": Image.fromarray(GRAY.astype(np.float32) / 7 - 5),
    "uint8": GRAY,
    "uint16": GRAY.astype(np.uint16) * 200,
    "float64": GRAY / 255,
    "bool": GRAY > 100,
    "channels last": np.stack([GRAY] * 3, -1),
    "one channel": GRAY[..., None],
    "channels first": np.stack([GRAY] * 3),
    "torch": torch.from_numpy(GRAY),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_gives_the_same_picture(kind):
    pixels = MVaEMaImageProcessor(size={"height": 32, "width": 32})(KINDS[kind])["pixel_values"][0]
    assert pixels.shape == (3, 32, 32)
    assert -1 <= pixels.min() < -0.3 and 0.3 < pixels.max() <= 1
    reference = np.asarray(Image.fromarray(GRAY).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.corrcoef(reference.ravel(), pixels[0].ravel())[0, 1] > 0.8
    if kind in ("L", "RGB", "RGBA", "LA", "palette", "uint8", "torch", "one channel"):
        np.testing.assert_allclose(pixels[1], reference / 127.5 - 1, atol=0.02)


@pytest.mark.slow
def test_a_huge_file_is_refused_and_a_huge_array_is_taken(tmp_path):
    """20,000 x 20,000 pixels: from a file it may be a bomb; an array is in memory already."""
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(ValueError, match=r"huge\.png.*decompression bomb"):
        to_8bit(path)
    huge = np.broadcast_to(np.uint8(7), (20_000, 20_000))
    pixels = MVaEMaImageProcessor()(huge, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)


def test_prompts_put_caption_scale_and_question_in_order():
    prompt = MVaEMaProcessor.prompt
    assert prompt("Why?") == "Why?"
    assert prompt("Why?", caption="Wires.", scale_bar="2 µm") == (
        "Wires. The scale bar marks 2 µm. Why?"
    )
    assert prompt("Why?", field_of_view_nm=5120.0, scale_bar="2 µm") == (
        "The field of view is 5.12 µm wide. Why?"
    )


@pytest.mark.parametrize(
    ("nanometres", "text"),
    [
        (0.05, "0.05 nm"),
        (0.246, "0.246 nm"),
        (850, "850 nm"),
        (999.4, "999 nm"),
        (999.6, "1 µm"),
        (1000, "1 µm"),
        (12340, "12.3 µm"),
        (999_400, "999 µm"),
        (999_600, "1 mm"),
        (2.5e6, "2.5 mm"),
    ],
)
def test_lengths_are_written_in_their_unit(nanometres, text):
    assert format_length(nanometres) == text


def test_pixel_size_becomes_the_field_of_view_of_the_image_as_given(processor, tmp_path):
    """Whatever the image comes as: array, PIL image, path, channels first."""
    Image.new("L", (64, 48)).save(tmp_path / "image.png")
    inputs = processor(
        images=[
            np.zeros((20, 500), np.uint8),
            Image.new("L", (64, 48)),
            tmp_path / "image.png",
            str(tmp_path / "image.png"),
            torch.zeros((3, 48, 64), dtype=torch.uint8),
        ],
        text=["Why?"] * 5,
        pixel_size_nm=[2.0, 10.0, 10.0, 10.0, 10.0],
    )
    texts = processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    lengths = ["1 µm"] + ["640 nm"] * 4
    assert texts == [f"The field of view is {length} wide. Why?" for length in lengths]


def test_too_long_texts_are_cut_and_counted(processor, caplog):
    long = "word " * 10_000
    with caplog.at_level("WARNING"):
        inputs = processor(text=[long, "Why?"], answers=[long, "short"])
    assert inputs["input_ids"].shape == inputs["labels"].shape == (2, 64)
    assert inputs.truncated["text"][0] > 9_000 and inputs.truncated["text"][1] == 0
    full = len(processor.tokenizer(long, add_special_tokens=False)["input_ids"]) + 1
    assert inputs.truncated["answers"] == [full - 64, 0]
    # The cut answer does not end: the student must not learn to stop there.
    assert processor.tokenizer.eos_token_id not in inputs["labels"][0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": ""}, "a question is empty"),
        ({"text": ["Why?", "  "]}, "a question is empty"),
        ({"answers": [""]}, "text 0 is empty"),
        ({}, "nothing to process"),
        ({"images": [GRAY, GRAY], "text": ["a", "b", "c"]}, "3 questions .* 2 images"),
        (
            {"images": [GRAY, GRAY], "text": ["a", "b"], "captions": ["c"]},
            "captions: expected 2 values",
        ),
        ({"text": "Why?", "pixel_size_nm": 3.0}, "pixel_size_nm needs the image"),
        ({"text": "Why?", "return_tensors": "np"}, "return_tensors"),
    ],
)
def test_bad_inputs_are_named(processor, inputs, message):
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


def test_unknown_arguments_are_refused(processor):
    with pytest.raises(TypeError, match="caption"):
        processor(text="Why?", caption="singular")


def test_any_tokenizer_gets_the_special_tokens_it_lacks(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "wires", "of", "gold", "?"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    processor = MVaEMaProcessor.from_tokenizer(BertTokenizer(str(tmp_path / "vocab.txt")))
    fields = processor.token_fields()
    assert fields["cls_token_id"] == 2 and fields["vocab_size"] == len(words) + 3
    assert sorted(fields[f"{n}_token_id"] for n in ("enc", "dec", "eos")) == [9, 10, 11]
    ids = processor(text="wires of gold ?")["input_ids"][0].tolist()
    assert ids == [fields["enc_token_id"], 5, 6, 7, 8]  # no [SEP] of its own


def test_a_tokenizer_without_them_is_refused(processor):
    bare = BertTokenizer(vocab={"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
    with pytest.raises(ValueError, match="from_tokenizer"):
        MVaEMaProcessor(processor.image_processor, bare)


def test_image_options_reach_the_image_processor(processor, images):
    plain = processor(images=images[0])["pixel_values"]
    options = {"do_normalize": False, "size": {"height": 16, "width": 24}}
    for given in (options, {"images_kwargs": options}):
        pixels = processor(images=images[0], **given)["pixel_values"]
        assert pixels.shape == (1, 3, 16, 24) and pixels.min() >= 0 > plain.min()
    with pytest.raises(ValueError, match="do_normalize"):
        processor(images=images[0], images_kwargs=options, do_normalize=True)


def test_texts_may_be_padded_to_a_length(processor):
    short = processor(text=["What?", "What is it?"], max_length=20)["input_ids"]
    padded = processor(text=["What?", "What is it?"], max_length=20, padding="max_length")
    assert short.shape[1] < 20 == padded["input_ids"].shape[1]
    assert torch.equal(padded["input_ids"][:, : short.shape[1]], short)
    assert (padded["input_ids"][:, short.shape[1] :] == processor.tokenizer.pad_token_id).all()
    assert padded["attention_mask"].sum(1).tolist() == (short != 0).sum(1).tolist()


@pytest.mark.parametrize(
    "given", [{"stride": 3}, {"text_kwargs": {"stride": 3}}, {"images_kwargs": {"stride": 3}}]
)
def test_options_that_mean_nothing_here_are_refused(processor, given):
    with pytest.raises(TypeError, match="does not take stride"):
        processor(text="What?", **given)


FINGERPRINTS = """
import pickle, sys
from datasets.fingerprint import Hasher
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
pickle.dump((processor, processor(text="What?")), open(sys.argv[2], "wb"))
print(Hasher.hash(processor))
"""
UNPICKLED = """
import pickle, sys
processor, inputs = pickle.load(open(sys.argv[1], "rb"))
assert inputs.truncated == {"text": [0]}, inputs
print(processor.decode(inputs["input_ids"][0], skip_special_tokens=True))
"""


@pytest.mark.slow
def test_a_processor_is_the_same_in_any_process(model, tmp_path):
    """`datasets` finds what it has mapped, and a process that knows nothing of it can read it."""
    model.save_pretrained(tmp_path / "student")

    def run(script, *arguments, seed):
        environment = os.environ | {"PYTHONHASHSEED": seed, "HF_HOME": str(tmp_path / "home")}
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, "-c", script, *map(str, arguments)]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    pickled = tmp_path / "processor.pkl"
    prints = [run(FINGERPRINTS, tmp_path / "student", pickled, seed=seed) for seed in "12"]
    assert prints[0] == prints[1]
    assert run(UNPICKLED, pickled, seed="3") == "What?"
