"""The paper's vision transformers that timm and transformers have.

What is special about it:
- all are the smallest of their families: the paper does not say which it used;
- Adam's 1e-3 is the paper's rate for all. Transformers here get 5e-4, Swin less.
"""

from torch import Tensor

from baselines.convnets import timm_model
from baselines.learners import Classifier, Learner
from baselines.rows import Row

GROUP = "Vision transformers"


class CvT(Learner):
    """transformers' CvT-13."""

    def __init__(self, classes: int):
        super().__init__()
        from transformers import CvtConfig, CvtForImageClassification

        self.model = CvtForImageClassification(CvtConfig(num_labels=classes))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits


def _sized(name: str):
    """A model of timm that is built for one image size."""
    return lambda shapes: Classifier(timm_model(name, shapes, img_size=shapes.image_size))


def _row(name, title, build, top_1, top_5, library="timm", learning_rate=5e-4, **more) -> Row:
    paper = {"top_1": top_1, "top_5": top_5}
    return Row(
        name, title, 2, GROUP, library, build, paper=paper, learning_rate=learning_rate, **more
    )


ROWS = [
    _row("convit-tiny", "ConViT-tiny", _sized("convit_tiny"), 0.609, 0.957),
    _row(
        "cvt-13",
        "CvT-13",
        lambda shapes: CvT(shapes.classes),
        0.319,
        0.921,
        library="transformers",
        note="the paper's ConvVT, of the same citation as its CVT",
    ),
    _row(
        "crossvit-tiny",
        "CrossViT-tiny",
        _sized("crossvit_tiny_240"),
        0.442,
        0.915,
        image_multiple=120,
        note="its two patch sizes want multiples of 120 pixels",
    ),
    _row(
        "pvt-v2-b0",
        "PVTv2-b0",
        lambda shapes: Classifier(timm_model("pvt_v2_b0", shapes)),
        0.596,
        0.964,
    ),
    _row(
        "swin-tiny",
        "Swin-tiny",
        _sized("swin_tiny_patch4_window7_224"),
        0.707,
        0.993,
        learning_rate=2e-4,
    ),
    _row("vit-tiny", "ViT-tiny", _sized("vit_tiny_patch16_224"), 0.655, 0.970),
    _row("visformer-tiny", "Visformer-tiny", _sized("visformer_tiny"), 0.398, 0.856),
    _row("cait-xxs24", "CaiT-xxs24", _sized("cait_xxs24_224"), 0.657, 0.989),
    _row("levit-128s", "LeViT-128s", _sized("levit_128s"), 0.624, 0.970),
    _row("nest-tiny", "NesT-tiny", _sized("nest_tiny"), 0.660, 0.985),
    _row("pit-ti", "PiT-ti", _sized("pit_ti_224"), 0.555, 0.979),
]
