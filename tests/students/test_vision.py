"""Students that see with a saved vision model: its weights and its images, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.vision_models import MODELS, TOKENS, randomized, save_vision
from transformers import (
    AutoImageProcessor,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    EfficientNetImageProcessorPil,
    Siglip2VisionConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from modeling_mvaema import MVaEMaModel
from mvaema.students.hub import STUDENT_FILES
from mvaema.students.loading import load_student
from mvaema.students.lora import add_adapters, merge_adapters, save_adapters
from mvaema.students.new import new_student
from mvaema.students.vision import preprocessing, vision_config
from mvaema.students.warm_start import from_encoders

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_text_layers": 1,
    "projection_dim": 16,
}


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.fixture
def student_of(tmp_path, processor):
    """A tiny student that sees with the checkpoint in a folder."""

    def make(folder=tmp_path / "eyes", **overrides) -> MVaEMaModel:
        tokenizer = processor.tokenizer
        return from_encoders(folder, tokenizer=tokenizer, **{**SMALL, **overrides}).eval()

    return make


@pytest.mark.parametrize("kind", MODELS)
def test_weights_of_every_kind_arrive(student_of, tmp_path, kind):
    model = save_vision(tmp_path / "eyes", MODELS[kind]())
    student = student_of()
    for name, weight in model.state_dict().items():
        assert torch.equal(student.image_encoder.vision_model.state_dict()[name], weight), name
    assert student.config.num_image_layers == 0
    student.save_pretrained(tmp_path / "student")
    shutil.rmtree(tmp_path / "eyes")
    loaded, pixels = load_student(tmp_path / "student").eval(), torch.randn(1, 3, 32, 32)
    close(loaded.image_encoder(pixels), student.image_encoder(pixels))
    assert str(tmp_path) not in (tmp_path / "student" / "config.json").read_text()
    names = {
        file.name for pattern in STUDENT_FILES for file in (tmp_path / "student").glob(pattern)
    }
    assert "vision_mvaema.py" in names and "README.md" not in names


def test_of_a_whole_clip_the_vision_half_is_taken(student_of, tmp_path):
    text = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
    vision = {**TOKENS, "intermediate_size": 40}
    clip = randomized(CLIPModel(CLIPConfig(text_config=text, vision_config=vision)))
    clip.save_pretrained(tmp_path / "eyes")
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size=32).save_pretrained(tmp_path / "eyes")
    student, pixels = student_of(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        close(student.image_encoder.features(pixels), clip.vision_model(pixels).last_hidden_state)
    mean = student.processor.image_processor.image_mean
    assert mean == pytest.approx([0.48145466, 0.4578275, 0.40821073], abs=1e-6)


def test_a_classifier_may_lack_a_pooler_but_no_layer(student_of, tmp_path, caplog):
    classifier = randomized(ViTForImageClassification(MODELS["vit"]()))
    classifier.config.num_labels = 1000
    classifier.save_pretrained(tmp_path / "eyes")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "eyes")
    pixels = torch.randn(1, 3, 32, 32)
    student = student_of()
    with torch.no_grad():
        close(student.image_encoder.features(pixels), classifier.vit(pixels).last_hidden_state)
    assert len(student.config.vision_config.id2label) == 2
    weights = load_file(tmp_path / "eyes" / "model.safetensors")
    del weights[next(name for name in weights if "layer" in name and "1." in name)]
    save_file(weights, tmp_path / "eyes" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"eyes' lacks 1 weights of its vision model"):
        student_of()


@pytest.mark.parametrize(
    "processor_of",
    [
        lambda: ViTImageProcessorPil(
            size={"height": 32, "width": 32}, image_mean=[0.485, 0.456, 0.406], resample=3
        ),
        lambda: ViTImageProcessorPil(size={"height": 48, "width": 48}, do_normalize=False),
        lambda: EfficientNetImageProcessorPil(
            size={"height": 40, "width": 40}, include_top=True, rescale_offset=True
        ),
        lambda: CLIPImageProcessorPil(size={"shortest_edge": 50}, crop_size=32),
    ],
)
def test_images_are_prepared_as_the_vision_model_wants_them(student_of, tmp_path, processor_of):
    save_vision(tmp_path / "eyes", MODELS["vit"]())
    processor_of().save_pretrained(tmp_path / "eyes")
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "eyes")
    ours = student_of().processor.image_processor
    side = ours.size["height"]
    # Of the target size, so that resizing (theirs crops, ours does not) changes nothing.
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    options = {"do_resize": False, "return_tensors": "pt"}
    expected = theirs(image, **options, do_center_crop=False)["pixel_values"]
    torch.testing.assert_close(ours(image, **options)["pixel_values"], expected, atol=1e-4, rtol=0)
    assert ours.resample == theirs.resample
    grey = image.convert("L")
    expected = theirs(grey.convert("RGB"), **options, do_center_crop=False)["pixel_values"]
    found = ours(grey, **options)["pixel_values"]
    assert found.shape == (1, 3, side, side)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_another_image_size_than_the_checkpoints(student_of, tmp_path, caplog):
    model = save_vision(tmp_path / "eyes", MODELS["clip"]())
    with caplog.at_level("WARNING"):
        student = student_of(image_size=52)
    assert "multiple of its patches of 8: it may not see the last 4 rows" in caplog.messages[-1]
    assert student.processor.image_processor.size["height"] == 52
    pixels = torch.randn(1, 3, 52, 52)
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state
        close(student.image_encoder.features(pixels), expected)
    with pytest.raises(ValueError, match="smaller than one patch of the vision model"):
        student_of(image_size=4)


def test_new_student_takes_any_vision_model(tmp_path):
    save_vision(tmp_path / "eyes", MODELS["convnext"]())
    rows = [{"scale_bar": None, "qa": []}]
    options = {"vision": str(tmp_path / "eyes"), "vocab_size": 300}
    plain = new_student(rows, {}, **options)
    assert plain.config.num_image_layers == 0
    assert plain.image_encoder.projection.in_features == 24
    layered = new_student(rows, {}, **options, config_overrides="num_image_layers=2")
    assert len(layered.image_encoder.layers) == 2
    lite = new_student(rows, {}, preset="lite", **options)
    assert lite.config.vision_config.model_type == "convnext"
    assert (lite.config.num_image_layers, lite.config.image_size) == (1, 32)


def test_adapters_belong_to_the_students_own_layers(student_of, tmp_path, batch):
    """A CLIP names its layers as the student does."""
    save_vision(tmp_path / "eyes", MODELS["clip"]())
    student = student_of(num_image_layers=1)
    student.save_pretrained(tmp_path / "base")
    tuned = add_adapters(load_student(tmp_path / "base"), rank=2, alpha=4, dropout=0.0)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert not [name for name in trained if "vision_model" in name]
    for part in ("image_encoder.projection", "image_encoder.layers.0.mlp.fc1", "text_stack.layers"):
        assert [name for name in trained if part in name], part
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        tuned.train()(**batch).loss.backward()
        optimizer.step()
    save_adapters(tuned, tmp_path / "adapters", str(tmp_path / "base"))
    merge_adapters(tmp_path / "adapters", tmp_path / "merged")
    with torch.no_grad():
        expected = tuned.eval()(**batch).loss
        close(load_student(tmp_path / "merged").eval()(**batch).loss, expected)
    before = student.image_encoder.vision_model.state_dict()
    merged = load_student(tmp_path / "merged").image_encoder.vision_model.state_dict()
    assert all(torch.equal(merged[name], weight) for name, weight in before.items())


def test_checkpoints_that_cannot_see_are_refused(student_of, make_model, tmp_path):
    shapes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    BertModel(BertConfig(**shapes, intermediate_size=8)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"bert' does not fit.*vision model: it takes input_ids"):
        student_of(tmp_path / "bert")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("gold wires")
    with pytest.raises((OSError, ValueError), match="texts"):
        student_of(tmp_path / "texts")
    make_model().save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match=r"student' is a whole student .* it with --model"):
        student_of(tmp_path / "student")
    Siglip2VisionConfig().save_pretrained(tmp_path / "naflex")
    with pytest.raises(ValueError, match=r"naflex' does not fit.*NaFlex.*fixed resolution"):
        student_of(tmp_path / "naflex")
    save_vision(tmp_path / "eyes", MODELS["vit"]())
    (tmp_path / "eyes" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"eyes' has no image processor \(preprocessor_"):
        student_of()


def test_a_model_that_holds_its_eyes_under_other_names_is_refused(student_of, tmp_path):
    """transformers would draw all weights at random and go on."""
    save_vision(tmp_path / "eyes", MODELS["vit"]())
    weights = load_file(tmp_path / "eyes" / "model.safetensors")
    renamed = {f"tower.of.another.{name}": weight for name, weight in weights.items()}
    save_file(renamed, tmp_path / "eyes" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d\d weights .*under other names"):
        student_of()


def test_timm_models_see_too(student_of, tmp_path):
    timm = pytest.importorskip("timm", reason='pip install "mvaema[timm]"')
    for name in ("resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        sizes = {"vit": {"depth": 2}, "swi": {"depths": (1, 1), "num_heads": (3, 3)}}
        arguments = sizes.get(name[:3], {})
        folder = tmp_path / name
        model = randomized(timm.create_model(name, num_classes=5, **arguments))
        timm.models.save_for_hf(model, folder, model_args=arguments or None)
        student, size = student_of(folder), 224 if name[:3] != "res" else 176
        assert student.config.image_size == size
        pixels = torch.randn(1, 3, size, size)
        with torch.no_grad():
            expected = model.forward_features(pixels)
            if name.startswith("swin"):
                expected = expected.permute(0, 3, 1, 2)
            close(student.image_encoder.features(pixels), expected)
        mean = np.broadcast_to(student.processor.image_processor.image_mean, 3)
        assert mean.tolist() == pytest.approx(model.pretrained_cfg["mean"])
        student.save_pretrained(tmp_path / "student")
        loaded = load_student(tmp_path / "student").eval()
        assert torch.equal(loaded.image_encoder(pixels), student.image_encoder(pixels))
        assert "tench" not in (tmp_path / "student" / "config.json").read_text()


def test_without_timm_its_models_name_it(student_of, tmp_path):
    try:
        import timm  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("timm is here")
    (tmp_path / "eyes").mkdir()
    config = {"architecture": "resnet10t", "num_classes": 1000, "pretrained_cfg": {}}
    (tmp_path / "eyes" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ImportError, match="timm"):
        student_of()


def test_what_a_checkpoint_says_of_images(tmp_path):
    save_vision(tmp_path / "eyes", MODELS["vit"](), image_mean=[0.1, 0.2, 0.3], resample=3)
    found = preprocessing(str(tmp_path / "eyes"), vision_config(str(tmp_path / "eyes")))
    assert found == {
        "image_size": 32,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": 0.5,
        "resample": 3,
    }
