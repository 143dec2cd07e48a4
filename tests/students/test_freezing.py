"""Which parameters of a vision model are trained."""

import pytest
from transformers import ResNetConfig, SiglipVisionConfig

from mvaema.students.freezing import train_vision

KINDS = {
    "siglip": SiglipVisionConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    ),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8], depths=[1, 1, 1]),
}


def trained(model) -> set[str]:
    vision = model.image_encoder.vision_model
    return {name for name, p in vision.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_blocks_are_trained_and_what_follows_them(make_model, kind):
    model = make_model(vision_config=KINDS[kind], num_image_layers=1)
    every = trained(model)
    train_vision(model, "none")
    assert not trained(model)
    assert model.image_encoder.projection.weight.requires_grad
    train_vision(model, "last:1")
    last = trained(model)
    train_vision(model, "last:2")
    assert last < trained(model) < every
    block = {"siglip": "layers.2.", "resnet": "stages.2."}[kind]
    before = {"siglip": "layers.1.", "resnet": "stages.1."}[kind]
    assert any(block in name for name in last) and not any(before in name for name in last)
    assert not any("embed" in name for name in last)
    train_vision(model, "all")
    assert trained(model) == every


def test_frozen_parts_stay_in_evaluation_mode(make_model):
    model = make_model(vision_config=KINDS["resnet"], num_image_layers=1)
    train_vision(model, "last:1")
    vision = model.train().image_encoder.vision_model
    assert vision.training and vision.encoder.stages[-1].training
    assert not vision.encoder.stages[0].training
    norms = [m for m in vision.modules() if "BatchNorm" in type(m).__name__]
    assert norms and not any(norm.training for norm in norms)
    assert model.image_encoder.layers[0].training and model.text_stack.training


def test_a_choice_that_cannot_be(make_model):
    with pytest.raises(ValueError, match="--vision"):
        train_vision(make_model(), "none")
    model = make_model(vision_config=KINDS["siglip"], num_image_layers=1)
    with pytest.raises(ValueError, match="3 blocks"):
        train_vision(model, "last:4")
    with pytest.raises(ValueError, match="last:K"):
        train_vision(model, "first:1")
