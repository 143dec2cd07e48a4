"""A student that is not on one device: offloaded to the CPU or the disk, or split over several."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from modeling_mvaema import MVaEMaModel

PROMPT = ("pixel_values", "input_ids", "attention_mask")
LENGTH = {"max_new_tokens": 5, "min_new_tokens": 5}
PARTS = ("image_encoder", "text_stack", "image_proj", "text_proj", "itm_head", "lm_head")


def same(model, offloaded, batch, images):
    """That both compute the same, in all the ways that people use."""
    inputs = {name: batch[name] for name in PROMPT}
    ids = model.generate(**inputs, **LENGTH)
    assert torch.equal(offloaded.generate(**inputs, **LENGTH), ids)
    torch.testing.assert_close(offloaded(**batch).loss, model(**batch).loss)
    assert offloaded.answer(images, "What?", **LENGTH) == model.answer(images, "What?", **LENGTH)
    for by in ("itc", "itm", "lm"):
        (got, *_), (expected, *_) = (m.classify(images, by=by) for m in (offloaded, model))
        assert got == pytest.approx(expected)


def test_offloaded_to_the_cpu(make_model, batch, images):
    offloaded = make_model()
    cpu_offload(offloaded, execution_device="cpu")
    assert offloaded.lm_head.weight.is_meta
    same(make_model(), offloaded, batch, images)


def test_offloaded_to_the_disk(make_model, batch, images, tmp_path):
    offloaded = make_model()
    disk_offload(offloaded, str(tmp_path), execution_device="cpu")
    same(make_model(), offloaded, batch, images)


def test_loaded_with_a_device_map(make_model, batch, images, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    places = {name: "disk" if "text" in name else "cpu" for name in PARTS}
    loaded = MVaEMaModel.from_pretrained(
        tmp_path,
        device_map={**places, "log_temperature": "cpu", "lm_head": "disk"},
        offload_folder=str(tmp_path / "offloaded"),
    )
    assert loaded.text_stack.word_embeddings.weight.is_meta
    same(model, loaded, batch, images)


WHOLE = {"pixel_values", "input_ids", "attention_mask", "labels", "statement_ids"}


@pytest.mark.parametrize(
    "elsewhere, inputs",
    [
        # A mask of padding is made by what it holds, and "meta" holds nothing.
        (PARTS[1:], {"pixel_values", "input_ids", "labels"}),
        (["itm_head", "lm_head"], WHOLE),
        (["lm_head"], WHOLE),
    ],
)
def test_split_over_two_devices(make_model, batch, elsewhere, inputs):
    """The second is "meta": it computes shapes, refuses to mix, and lets nothing come back."""
    batch = {name: batch[name] for name in inputs}
    expected, model = make_model()(**batch), make_model()
    for name in elsewhere:
        for module in model.get_submodule(name).to("meta").modules():
            add_hook_to_module(module, AlignDevicesHook(execution_device="meta"))
    output = model(**batch)
    assert {k: v.shape for k, v in output.items()} == {k: v.shape for k, v in expected.items()}
    assert output.loss.is_meta and output.logits.is_meta
