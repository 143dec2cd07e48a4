"""Image states of any vision model against the encoder called by hand, and what else holds."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from support.vision_models import FEATURES, MODELS, randomized
from transformers import AutoModel, BertConfig, CLIPConfig, Siglip2VisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from configuration_mvaema import MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from vision_mvaema import chosen_features, grid_positions

KINDS = list(MODELS)
SOME = ["clip", "swin", "efficientnet"]


@pytest.fixture
def make_seeing(make_model):
    """A tiny student with a vision model of a kind, its statistics random too."""

    def make(kind: str = "clip", **overrides) -> MVaEMaModel:
        model = make_model(**{"vision_config": MODELS[kind](), "num_image_layers": 1, **overrides})
        randomized(model.image_encoder.vision_model)
        return model

    return make


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def by_hand(model: MVaEMaModel, kind: str, pixels: torch.Tensor) -> torch.Tensor:
    """Image states as the documentation says, by a vision model of transformers' own."""
    encoder = model.image_encoder
    vision = AutoModel.from_config(MODELS[kind]()).eval()
    vision.load_state_dict(encoder.vision_model.state_dict())
    options = {"interpolate_pos_encoding": True} if kind in ("vit", "clip", "siglip") else {}
    states = vision(pixel_values=pixels, **options).last_hidden_state
    grid = None
    if kind == "swin":  # tokens row by row
        grid = (pixels.shape[2] // 8, pixels.shape[3] // 8)
    elif states.ndim == 4:
        grid = states.shape[2:]
        states = states.permute(0, 2, 3, 1).reshape(len(pixels), -1, states.shape[1])
    norm, projection = encoder.feature_norm, encoder.projection
    mean, variance = states.mean(-1, keepdim=True), states.var(-1, unbiased=False, keepdim=True)
    states = (states - mean) / (variance + model.config.layer_norm_eps).sqrt()
    states = (states * norm.weight + norm.bias) @ projection.weight.T + projection.bias
    if grid is not None:
        states = states + grid_positions(*grid, states.shape[-1])
    states = torch.cat([encoder.cls_token + states.mean(dim=1, keepdim=True), states], dim=1)
    for layer in encoder.layers:
        states = layer(states)
    return encoder.norm(states)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_image_states_are_those_of_the_encoder_called_by_hand(make_seeing, kind):
    torch.manual_seed(0)
    for layers in (0, 1):
        model = make_seeing(kind, num_image_layers=layers)
        for size in ((32, 32), (48, 64)):  # positions are interpolated
            pixels = torch.randn(2, 3, *size)
            expected = by_hand(model, kind, pixels)
            close(model.image_encoder(pixels), expected)
    assert (
        tuple(model.image_encoder.features(torch.zeros(1, 3, 32, 32)).shape[1:]) == FEATURES[kind]
    )


def test_places_are_those_of_the_image_at_any_resolution():
    coarse, fine = grid_positions(4, 6, 22), grid_positions(12, 18, 22)
    assert coarse.shape == (24, 22)
    # The middle of a cell is the middle of the middle of its nine cells.
    middles = fine.view(12, 18, 22)[1::3, 1::3].reshape(24, 22)
    close(coarse, middles, atol=1e-6)
    assert len(coarse[:, :20].unique(dim=0)) == 24


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reaches_all_weights_that_are_used_and_moves_no_statistics(make_seeing, batch, kind):
    model = make_seeing(kind).train()
    encoder = model.image_encoder
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    unused = encoder.unused_weights()
    model(**batch).loss.backward()
    for name, parameter in encoder.vision_model.named_parameters():
        assert (parameter.grad is None) == (name in unused), name
    assert encoder.projection.weight.grad.abs().sum() > 0
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, before[name]), name
    named = {"vit": "pooler", "clip": "post_layernorm", "siglip": "head", "dinov2": "mask_token"}
    assert not unused or any(named.get(kind, "") in name for name in unused)


def test_what_is_frozen_is_as_in_evaluation(make_seeing, batch):
    config = MODELS["dinov2"]()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = config.drop_path_rate = 0.5
    model = make_seeing("dinov2", vision_config=config)
    encoder, pixels = model.image_encoder, batch["pixel_values"]
    expected = encoder.features(pixels)
    encoder.vision_model.requires_grad_(False)
    model.train()
    close(encoder.features(pixels), expected, atol=0)
    assert model(**batch).loss.requires_grad
    last = encoder.vision_model.encoder.layer[-1].requires_grad_(True)
    model.train()
    assert last.training and not encoder.vision_model.encoder.layer[0].training
    with pytest.raises(AssertionError):
        close(encoder.features(pixels), expected)
    model.eval()
    close(encoder.features(pixels), expected, atol=0)


@pytest.mark.parametrize("instruction_aware", [False, True])
@pytest.mark.parametrize("kind", ["siglip", "efficientnet"])
def test_features_may_be_given_instead_of_pixels(make_seeing, batch, kind, instruction_aware):
    model = make_seeing(kind, instruction_aware=instruction_aware)
    expected = model(**batch)
    features = model.image_encoder.features(batch.pop("pixel_values"))
    output = model(**batch, image_features=features)
    assert output.keys() == expected.keys()
    for name in ("loss", "itc_loss", "itm_loss", "lm_loss", "logits", "image_embeds"):
        close(output[name], expected[name])
    model.train()
    close(model(**batch, image_features=features).loss, expected.loss)
    with pytest.raises(ValueError, match="pixel_values and image_features were given"):
        model(**batch, image_features=features, pixel_values=torch.zeros(4, 3, 32, 32))


def test_the_papers_vit_takes_features_too(model, batch):
    expected = model(**batch)
    features = model.image_encoder.features(batch.pop("pixel_values"))
    close(model(**batch, image_features=features).loss, expected.loss)


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
@torch.no_grad()
def test_several_layers_lie_side_by_side(make_seeing, kind):
    layers = {"vit": [1, 2, -1], "swin": [0, 1, -1], "resnet": [2, 4]}[kind]
    encoder = make_seeing(kind, vision_feature_layer=layers).image_encoder
    pixels = torch.randn(2, 3, 64, 64)
    options = {} if kind == "resnet" else {"interpolate_pos_encoding": True}
    output = encoder.vision_model(pixels, output_hidden_states=True, **options)
    features = encoder.features(pixels)
    if kind == "vit":
        chosen = [output.hidden_states[1], output.hidden_states[2], output.last_hidden_state]
        close(features, torch.cat(chosen, dim=-1))
    elif kind == "resnet":  # grids of 8 and 2
        early, late = output.hidden_states[2], output.hidden_states[4]
        means = early.unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean(dim=(3, 5))
        close(features, torch.cat([means, late], dim=1))
    else:  # 16 x 16 tokens, then 8 x 8
        early = output.hidden_states[0].view(2, 8, 2, 8, 2, 12).mean(dim=(2, 4))
        others = [output.hidden_states[1], output.last_hidden_state]
        expected = torch.cat([early, *(x.view(2, 8, 8, 24) for x in others)], dim=3)
        close(features.permute(0, 2, 3, 1), expected)
    assert encoder.projection.in_features == features.shape[2 if kind == "vit" else 1]
    one = make_seeing(kind, vision_feature_layer=1).image_encoder.features(pixels)
    assert one.shape[0] == 2


def test_maps_with_the_width_last_are_turned():
    """As timm's Swin gives them: (rows, columns, width)."""
    states = torch.randn(2, 3, 5, 7)
    output = BaseModelOutputWithPooling(states, torch.zeros(2, 7))
    assert torch.equal(chosen_features(output, -1), states.permute(0, 3, 1, 2))
    for pooled in (torch.zeros(2, 3), torch.zeros(2, 3, 1, 1), None):
        output = BaseModelOutputWithPooling(states, pooled)
        assert torch.equal(chosen_features(output, -1), states)


@pytest.mark.parametrize("kind", SOME)
def test_attention_and_half_precision(make_seeing, batch, kind):
    model = make_seeing(kind, initializer_range=0.02)
    with torch.no_grad():
        expected = model(**batch)
        model.set_attn_implementation("eager")
        vision = model.image_encoder.vision_model
        assert vision.config._attn_implementation == "eager"
        close(model(**batch).loss, expected.loss)
        model.set_attn_implementation("sdpa")
        implementation = "eager" if kind == "efficientnet" else "sdpa"
        assert vision.config._attn_implementation == implementation
        close(model(**batch).loss, expected.loss)
        output = model.to(torch.bfloat16)(**batch)
    for name in ("itc_loss", "itm_loss", "lm_loss"):
        assert float(output[name]) == pytest.approx(float(expected[name]), rel=0.05)


def test_weights_and_states_of_the_own_layers_can_be_asked_for(make_seeing, batch):
    model = make_seeing("clip", attn_implementation="eager", num_image_layers=2)
    options = {"output_attentions": True, "output_hidden_states": True}
    features = model.get_image_features(batch["pixel_values"], **options)
    assert [x.shape for x in features.hidden_states] == [(4, 18, 32)] * 3
    assert [x.shape for x in features.attentions] == [(4, 4, 18, 18)] * 2
    close(features.hidden_states[-1], features.last_hidden_state)
    output = model(**batch, **options)
    words, length = batch["labels"].shape[1], batch["input_ids"].shape[1]
    assert output.cross_attentions[0].shape == (8, 4, words, 18 + length)


def test_checkpointing_gives_the_same_gradients(make_seeing, batch):
    gradients = []
    for checkpointing in (False, True):
        model = make_seeing("siglip").train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch).loss.backward()
        vision = model.image_encoder.vision_model
        gradients.append([p.grad for p in vision.parameters() if p.grad is not None])
    assert gradients[0]
    for one, other in zip(*gradients, strict=True):
        close(one, other, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOME)
def test_exported_and_compiled(make_seeing, batch, kind):
    model = make_seeing(kind)
    inputs = {"pixel_values": batch["pixel_values"], "input_ids": batch["input_ids"][:4]}
    inputs["decoder_input_ids"] = batch["labels"][:4].clamp(min=0)
    rows = torch.export.Dim("rows", min=2, max=64)
    shapes = {name: {0: rows} for name in inputs}
    graph = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False).module()
    three = {name: values[:3] for name, values in inputs.items()}
    close(graph(**three)["logits"], model(**three).logits)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(**batch).loss, model(**batch).loss)


STRANGER = """
import json, sys, torch
from transformers import AutoModel
found = {}
for kind in sys.argv[2:]:
    folder = f"{sys.argv[1]}/{kind}"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        states = model.image_encoder(torch.linspace(-1, 1, 3072).view(1, 3, 32, 32))
    found[kind] = states[0, :, 0].tolist()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_process_without_this_project_sees_the_same(make_seeing, tmp_path):
    expected = {}
    for kind in SOME:
        model = make_seeing(kind)
        model.save_pretrained(tmp_path / kind)
        with torch.no_grad():
            states = model.image_encoder(torch.linspace(-1, 1, 3072).view(1, 3, 32, 32))
        expected[kind] = states[0, :, 0].tolist()
        assert (tmp_path / kind / "vision_mvaema.py").is_file()
        loaded = MVaEMaModel.from_pretrained(tmp_path / kind, dtype=torch.bfloat16)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        vision = loaded.image_encoder.vision_model
        assert vision.config is loaded.config.vision_config
    command = [sys.executable, "-c", STRANGER, tmp_path, *SOME]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    for kind in SOME:
        assert found[kind] == pytest.approx(expected[kind], abs=1e-5)


def test_a_vision_model_stored_in_half_precision_is_no_stranger(make_seeing, batch):
    config = MODELS["vit"]()
    config.dtype = torch.float16
    model = make_seeing("vit", vision_config=config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(**batch).loss.isfinite()


def refused(match: str, vision_config, **fields):
    config = MVaEMaConfig(**{"image_size": 32, "vision_config": vision_config, **fields})
    with pytest.raises(ValueError, match=match):
        MVaEMaModel(config)


def test_configurations_that_do_not_fit_are_refused_with_the_reason():
    refused("'bert' model is no vision model: it takes input_ids", BertConfig())
    refused("'clip' model is no vision model", CLIPConfig())
    refused("needs pixel_attention_mask, spatial_shapes beside pixel_values", Siglip2VisionConfig())
    refused(r"image_size \(7\) is smaller than one patch .* \(8\)", MODELS["vit"](), image_size=7)
    refused("no hidden state 7 among the 3", MODELS["vit"](), vision_feature_layer=7)
    with pytest.raises(StrictDataclassError, match="names no layer"):
        MVaEMaConfig(vision_config=MODELS["vit"](), vision_feature_layer=[])
    with pytest.raises(StrictDataclassError, match="num_image_layers must not be negative"):
        MVaEMaConfig(vision_config=MODELS["vit"](), num_image_layers=-1)


def test_pixels_that_do_not_fit_are_refused(make_seeing):
    encoder = make_seeing("clip").image_encoder
    with pytest.raises(ValueError, match=r"4 x 4 pixels are smaller than one patch .*=8"):
        encoder(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="pixel_values must be"):
        encoder(torch.zeros(1, 1, 32, 32))


@torch.no_grad()
def test_what_lies_beyond_the_last_whole_patch_is_not_seen(make_seeing):
    encoder = make_seeing("clip", image_size=30).image_encoder
    pixels = torch.randn(1, 3, 30, 30)
    states = encoder(pixels)
    assert states.shape[1] == 1 + 1 + 9
    pixels[..., 24:, :] = pixels[..., 24:] = 0
    close(encoder(pixels), states, atol=0)
