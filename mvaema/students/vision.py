"""A pre-trained vision model: what it is, how it wants its images, its weights in a student.

What is special about it:
- any checkpoint of a vision model that transformers loads will do, timm's included, or of a model
  that has a vision half, such as CLIP;
- how images are normalised is measured, on a black and a white image: checkpoints say it in many
  ways (rescaling factors and offsets, a second normalisation, timm's transforms);
- a checkpoint that lacks a weight that the features depend on is refused. transformers would draw
  it at random and go on.
"""

from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig

from configuration_mvaema import MVaEMaConfig
from vision_mvaema import MVaEMaVisionEncoder, check_vision_config

# Pillow's names of what timm calls an interpolation.
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def read_config(name: str, argument: str) -> PreTrainedConfig:
    """The configuration of a model in a folder or on the Hub.

    Args:
        argument: of the caller, for messages.

    Raises:
        ValueError: it is none that transformers knows, or a student of this project.
        OSError: it is not there.
        ImportError: it is of timm, which is missing.
    """
    found, _ = PreTrainedConfig.get_config_dict(name)
    if found.get("model_type") == MVaEMaConfig.model_type:
        raise ValueError(
            f"{argument}: {name!r} is a whole student of this project, not an encoder. Go on "
            "training it with --model."
        )
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        raise ValueError(f"{argument}: {name!r} holds no model of transformers: {error}") from error


def vision_config(name: str) -> PreTrainedConfig:
    """Of the vision model in a folder or on the Hub, or of the vision half of another model.

    Raises:
        ValueError, OSError, ImportError: as `read_config`; ValueError also for what sees no images
            of a fixed size.
    """
    config = read_config(name, "vision")
    config = getattr(config, "vision_config", None) or config
    # Of a classifier there is nothing to keep: neither 1,000 names nor, of timm, its size, which
    # transformers passes to timm itself.
    config.num_labels = 2
    if getattr(config, "model_args", None):
        config.model_args.pop("num_classes", None)
    try:
        check_vision_config(config)
    except ValueError as error:
        raise ValueError(f"vision: {name!r} does not fit. {error}") from error
    return config


def preprocessing(name: str, config: PreTrainedConfig) -> dict:
    """How a vision checkpoint wants its images.

    Returns:
        `image_size`, the side of a square in pixels; `resample`, `image_mean` and `image_std`, of
        pixels between 0 and 1. Mean and deviation are one number where the channels agree.

    Raises:
        ValueError: the checkpoint does not say it, or wants other than squares of one size.
        ImportError: timm or what it needs is missing.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"vision: {name!r} has no image processor (preprocessor_config.json), so it is "
            f"incomplete. Copy that file from where the weights came from: {error}"
        ) from error
    side = getattr(config, "image_size", None)
    side = side if isinstance(side, int) else MVaEMaConfig.image_size
    flat = [Image.new("RGB", (side, side), (grey,) * 3) for grey in (0, 255)]
    pixels = processor(flat, return_tensors="pt")["pixel_values"]
    if pixels.ndim != 4 or pixels.shape[2] != pixels.shape[3]:
        raise ValueError(
            f"vision: the image processor of {name!r} makes pixel_values of the shape "
            f"{tuple(pixels.shape[1:])} of a square; expected (3, side, side)."
        )
    black, white = pixels.double().mean(dim=(2, 3))
    std = 1 / (white - black)
    mean, std = ([round(x, 6) for x in values.tolist()] for values in (-black * std, std))
    timm = getattr(processor, "data_config", None) or {}
    resample = RESAMPLING.get(timm.get("interpolation"), getattr(processor, "resample", None))
    found = {
        "image_size": pixels.shape[-1],
        "image_mean": mean if len(set(mean)) > 1 else mean[0],
        "image_std": std if len(set(std)) > 1 else std[0],
    }
    return found if resample is None else found | {"resample": resample}


def copy_vision(name: str, encoder: MVaEMaVisionEncoder) -> None:
    """Put a checkpoint's weights into the vision model of an image encoder.

    Raises:
        ValueError: the checkpoint lacks weights that the features depend on.
    """
    source, info = AutoModel.from_pretrained(
        name,
        config=encoder.config.vision_config,
        dtype=encoder.vision_model.dtype,
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = sorted(set(info["missing_keys"]) - encoder.unused_weights())
    if missing:
        raise ValueError(
            f"vision: {name!r} lacks {len(missing)} weights of its vision model, "
            f"{', '.join(missing[:3])} among them. It is incomplete, or it holds them under other "
            "names; take the checkpoint of the vision model alone."
        )
    encoder.vision_model.load_state_dict(source.state_dict())
    encoder.config.vision_config.name_or_path = ""  # a folder's name must not go into config.json
