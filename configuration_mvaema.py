"""Configuration of MVaEMa, a small vision-language model for electron micrographs.

What is special about it:
- image states and the text stack share one width, so that the decoder can attend to image states
  and grounded question states in one memory. A pre-trained vision model (`vision_config`) has its
  own width; its features are projected;
- the paper's ablations are fields, not forks (`use_self_attention`, `itc_weight=0`, ...);
- a checkpoint carries the categories and questions it was trained on, so that
  `model.classify(image)` and `model.answer(image)` need nothing but the checkpoint.

This file stands alone: `save_pretrained` and `push_to_hub` copy it into the model repository.
"""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# The ten categories of Aversa et al. 2018 and the symbolic caption that names each of them.
CATEGORY_CAPTIONS = {
    "Biological": "An electron micrograph of a biological specimen.",
    "Fibres": "An electron micrograph of fibres.",
    "Films_Coated_Surface": "An electron micrograph of a film or coated surface.",
    "MEMS_devices_and_electrodes": "An electron micrograph of a MEMS device or electrode.",
    "Nanowires": "An electron micrograph of nanowires.",
    "Particles": "An electron micrograph of particles.",
    "Patterned_surface": "An electron micrograph of a patterned surface.",
    "Porous_Sponge": "An electron micrograph of a porous sponge.",
    "Powder": "An electron micrograph of a powder.",
    "Tips": "An electron micrograph of a tip.",
}

# The ten question groups. The ids are stable; the wording may be overridden per checkpoint.
QUESTIONS = {
    "basics": (
        "What kind of nanomaterial does this micrograph show, and what real-world length does its "
        "scale bar state?"
    ),
    "morphology": (
        "What are the overall shape and morphology, are separate layers, phases or domains "
        "visible, and how consistent are size and shape?"
    ),
    "size_distribution": (
        "How large are the structures, how are they distributed, and do they aggregate or bundle?"
    ),
    "surface": (
        "What is the surface texture like, and which imperfections such as defects, pores or "
        "impurities are visible?"
    ),
    "composition": (
        "Which brightness, contrast or colour differences hint at variations in composition, and "
        "does any label or marker name an element or compound?"
    ),
    "interfaces": (
        "Do the structures touch, fuse or stay separate, and are the boundaries between them "
        "distinct or blended?"
    ),
    "environment": (
        "Which signs of interaction with the surroundings are visible, and which objects are not "
        "part of the nanomaterial?"
    ),
    "imaging": ("Which imaging technique was used, and has the image been modified or annotated?"),
    "function": (
        "Which elements or regions look functionally distinct, and does the image show a process "
        "or a static state?"
    ),
    "application": (
        "What could this material be used for, and does the image look experimental or simulated?"
    ),
}

# Its answer is the caption; it is asked beside the ten so that the decoder can classify.
CATEGORY_QUESTION = "Which category of nanomaterial does this micrograph show?"

PRESETS = {
    # The paper's model: patches of 32, width 64, four heads of 16 (the defaults), from scratch.
    # BERT's initial deviation of 0.02 belongs to width 768; it scales with 1 / sqrt(width). From
    # scratch, a low temperature drives all embeddings together before they mean anything.
    "paper": {"initializer_range": 0.07, "initial_temperature": 0.2},
    # The text stack has the shapes of MiniLM-L6 and can start from it (`from_encoders`).
    "small": {
        "patch_size": 16,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 12,
        "num_image_layers": 12,
        "num_text_layers": 6,
        "vocab_size": 30525,
        "max_position_embeddings": 512,
        "projection_dim": 256,
    },
    # The eyes are EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, which gates
    # that are always open stand for. Without its weights (`from_encoders`) they are blind.
    "lite": {
        "vision_config": {
            "model_type": "efficientnet",
            "image_size": 224,
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
            "hidden_dim": 1280,
            "hidden_act": "relu6",
            "depthwise_padding": [],
        },
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_image_layers": 1,
        "num_text_layers": 3,
        "hidden_dropout_prob": 0.1,
        "projection_dim": 128,
        "initializer_range": 0.05,
        "initial_temperature": 0.1,
    },
    # ViT-B/16 and BERT-base shapes, to be warm-started.
    "base": {
        "patch_size": 16,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_image_layers": 12,
        "num_text_layers": 12,
        "vocab_size": 30525,
        "max_position_embeddings": 512,
        "projection_dim": 256,
    },
}


@strict
class MVaEMaConfig(PreTrainedConfig):
    r"""
    Every architectural choice of [`MVaEMaModel`]; by default the shapes of the `paper` preset.

    Args:
        image_size (`int`, *optional*, defaults to 224):
            Side of the square image the learned positions belong to, in pixels. Other sizes are
            accepted by the model: the positions are then interpolated.
        patch_size (`int`, *optional*, defaults to 32):
            Side of the non-overlapping patches, in pixels. Divides `image_size`.
        num_channels (`int`, *optional*, defaults to 3):
            Channels of `pixel_values`. Grayscale micrographs are repeated to three, so that
            pretrained ViT weights fit.
        hidden_size (`int`, *optional*, defaults to 64):
            Width of the image states and of the text stack.
        intermediate_size (`int`, *optional*, defaults to 256):
            Width of the hidden layer of each `mlp`.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Heads of every attention. Divides `hidden_size`.
        num_image_layers (`int`, *optional*, defaults to 6):
            Layers of the image encoder; with `vision_config`, layers of the student's own behind
            that model, which may be 0.
        num_text_layers (`int`, *optional*, defaults to 6):
            Layers of the text stack, which its three modes share.
        vocab_size (`int`, *optional*, defaults to 4096):
            Tokens of the tokenizer, special ones included.
        max_position_embeddings (`int`, *optional*, defaults to 256):
            Longest text in tokens, special ones included.
        projection_dim (`int`, *optional*, defaults to 64):
            Width of the space in which images and texts are compared (ITC).
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of each `mlp`.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout after embeddings, attentions and `mlp`s.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of attention probabilities.
        layer_norm_eps (`float`, *optional*, defaults to 1e-12):
            Epsilon of the layer norms (the value of ViT and BERT).
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        initial_temperature (`float`, *optional*, defaults to 0.07):
            Starting value of the learnable ITC temperature tau.
        itc_weight, itm_weight, lm_weight (`float`, *optional*, default to 1.0):
            Weights of the three losses. A weight of 0 switches the loss off: it is neither
            computed nor returned (the paper's "w/o ITC" and "w/o CTC").
        use_self_attention (`bool`, *optional*, defaults to `True`):
            Bidirectional self-attention of the two text encoders ("w/o SA" when `False`; the
            decoder and the image encoder keep theirs). Without it no single token knows the
            whole text, so the mean over the tokens stands in for [CLS] and [ENC].
        use_cross_attention (`bool`, *optional*, defaults to `True`):
            Cross-attention of the text stack ("w/o CA" when `False`): matching and answering
            then see text only.
        use_causal_mask (`bool`, *optional*, defaults to `True`):
            The decoder's causal mask ("w/o CSA" when `False`). Without it a word sees its
            successors in training, so the LM loss is no measure of generation any more, and
            `generate` recomputes the whole prefix at each step.
        instruction_aware (`bool`, *optional*, defaults to `False`):
            Whether the question's text embedding joins the image tokens as one more token, so
            that the image encoder knows what is asked.
        multi_positive (`bool`, *optional*, defaults to `True`):
            Whether all statements that equal one of an image's, and all images of a statement, are
            positives of ITC and no negatives of ITM. When `False`, each statement has its own
            image only, as the paper writes the loss.
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the vision model that takes the place of the paper's ViT: any that
            transformers builds through `AutoModel`, timm's models included. `patch_size` then
            means nothing: the vision model has its own, and what lies beyond the last whole patch
            of an image is not seen.
        vision_feature_layer (`int` or `list[int]`, *optional*, defaults to -1):
            Which of that model's `hidden_states` are its features; -1 is its
            `last_hidden_state`. Several lie side by side: early layers of a network hold texture,
            late ones objects. Maps are averaged to the coarsest grid among them.
        categories (`dict[str, str]`, *optional*):
            Category name to the caption that names it; what `classify` ranks by default.
        questions (`dict[str, str]`, *optional*):
            Question id to its wording; what `answer` asks by default.
        category_question (`str`, *optional*):
            Question whose answer is the category's caption; trained beside the ten, and what
            `classify(by="lm")` asks.
        pad_token_id, cls_token_id, enc_token_id, dec_token_id (`int`, *optional*):
            Ids of [PAD], [CLS], [ENC] and [DEC].
        eos_token_id (`int` or `list[int]`, *optional*):
            Id of [EOS], or of all tokens that end an answer.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field has the wrong type, or fields
            contradict each other; the message names them.

    Example:

    ```python
    >>> from configuration_mvaema import MVaEMaConfig

    >>> config = MVaEMaConfig.from_preset("small", vocab_size=8000)
    >>> config.head_dim
    32
    ```"""

    model_type = "mvaema"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="vit", optional=True)
    }

    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_size: int = 64
    intermediate_size: int = 256
    num_attention_heads: int = 4
    num_image_layers: int = 6
    num_text_layers: int = 6
    vocab_size: int = 4096
    max_position_embeddings: int = 256
    projection_dim: int = 64
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    initial_temperature: float = 0.07
    itc_weight: float | int = 1.0
    itm_weight: float | int = 1.0
    lm_weight: float | int = 1.0
    use_self_attention: bool = True
    use_cross_attention: bool = True
    use_causal_mask: bool = True
    instruction_aware: bool = False
    multi_positive: bool = True
    vision_config: dict | PreTrainedConfig | None = None
    vision_feature_layer: int | list[int] = -1
    categories: dict[str, str] = field(default_factory=lambda: dict(CATEGORY_CAPTIONS))
    questions: dict[str, str] = field(default_factory=lambda: dict(QUESTIONS))
    category_question: str = CATEGORY_QUESTION
    pad_token_id: int = 0
    cls_token_id: int = 1
    enc_token_id: int = 2
    dec_token_id: int = 3
    eos_token_id: int | list[int] = 4
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        # `generate` starts the answer with [DEC]; everything else follows the standard names.
        kwargs.setdefault("decoder_start_token_id", self.dec_token_id)
        kwargs.setdefault("bos_token_id", self.dec_token_id)
        # The classes that AutoModel finds in the model repository. `register_for_auto_class`
        # writes one key per saved object only, so both are preset here.
        kwargs.setdefault(
            "auto_map",
            {
                "AutoConfig": "configuration_mvaema.MVaEMaConfig",
                "AutoModel": "modeling_mvaema.MVaEMaModel",
                "AutoModelForImageTextToText": "modeling_mvaema.MVaEMaModel",
                "AutoProcessor": "processing_mvaema.MVaEMaProcessor",
            },
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "MVaEMaConfig":
        """The configuration of a preset (a key of `PRESETS`), fields overridden.

        Raises:
            ValueError: there is no preset of that name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}.")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_patches(self) -> int:
        """Patches of an image of `image_size`."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the decoder, under the name that transformers' caches look for."""
        return self.num_text_layers

    def validate_dimensions(self):
        """Fields that contradict each other (called by `strict` after `__init__`)."""
        positive = (
            "image_size patch_size num_channels hidden_size intermediate_size num_attention_heads "
            "num_image_layers num_text_layers vocab_size max_position_embeddings projection_dim "
            "layer_norm_eps initial_temperature"
        ).split()
        if self.vision_config is not None:
            positive.remove("num_image_layers")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.num_image_layers < 0:
            raise ValueError(f"num_image_layers must not be negative; got {self.num_image_layers}.")
        if self.vision_feature_layer == []:
            raise ValueError("vision_feature_layer names no layer; -1 is the last output.")
        if self.vision_config is None and self.image_size % self.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of patch_size "
                f"({self.patch_size})."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1); got {getattr(self, name)}.")

    def validate_losses(self):
        """Loss weights are non-negative, and at least one loss is on."""
        weights = {n: getattr(self, n) for n in ("itc_weight", "itm_weight", "lm_weight")}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name} must not be negative; got {weight}.")
        if not any(weights.values()):
            raise ValueError("itc_weight, itm_weight and lm_weight are all 0: nothing to train on.")

    def validate_special_tokens(self):
        """Special ids are distinct and inside the vocabulary."""
        names = ("pad_token_id", "cls_token_id", "enc_token_id", "dec_token_id", "eos_token_id")
        ids = [getattr(self, name) for name in names[:-1]]
        ids += self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        if len(set(ids)) != len(ids):
            raise ValueError(f"{', '.join(names)} must differ; got {ids}.")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise ValueError(
                f"{', '.join(names)} must lie in [0, vocab_size={self.vocab_size}); got {ids}."
            )


MVaEMaConfig.register_for_auto_class()

__all__ = ["CATEGORY_CAPTIONS", "CATEGORY_QUESTION", "PRESETS", "QUESTIONS", "MVaEMaConfig"]
