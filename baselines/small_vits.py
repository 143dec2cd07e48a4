"""Vision transformers for small data sets: those of vit-pytorch, and three on timm's blocks.

What is special about it:
- all are tiny, as a few hundred micrographs ask for: ViT-tiny's width and depth, or seven blocks of
  width 256 where that is the architecture's own small size (CCT, CVT, T2T-ViT);
- T2T-ViT is here because vit-pytorch's has tokens of width 1,323, and the distilled DeiT because
  vit-pytorch's `DistillWrapper` moves the teacher's batch norm. This teacher is a ResNet-18 that
  the first half of the same budget trains, and the second half leaves as it is;
- ATS draws its tokens at random, in evaluation too. There, each micrograph has a seed of its own,
  so that its scores are the same again and do not depend on the rest of the batch.

Image sizes are multiples of 16 pixels, of 32 for RegionViT. Parameters are those for ten classes at
224 pixels.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.learners import Classifier, Learner, TwoPhases
from baselines.rows import Row, Shapes

GROUP = "Vision transformers"
PATCH = 16
REGIONS = 32  # RegionViT's: eight a side, of patches of 4 pixels
# ViT-tiny of timm and DeiT.
TINY = {"dim": 192, "depth": 12, "heads": 3, "mlp_dim": 768, "dim_head": 64}
# Tokens that ATS keeps after each of its twelve blocks, as shares of those of an image. Its paper
# samples from the fourth block on.
KEPT = (1, 1, 1, 0.75, 0.75, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25)


def vit_shapes(shapes: Shapes, **sizes: int) -> dict[str, int]:
    """The arguments that vit-pytorch's ViTs share; `sizes` change some of `TINY`."""
    common = {"image_size": shapes.image_size, "patch_size": PATCH, "num_classes": shapes.classes}
    return common | TINY | sizes


def cct(shapes: Shapes) -> Learner:
    """CCT-7/7x2: 4.5 M parameters; two convolutions give a token for 16 × 16 pixels."""
    from vit_pytorch.cct import cct_7

    return Classifier(
        cct_7(
            img_size=shapes.image_size,
            num_classes=shapes.classes,
            n_conv_layers=2,
            kernel_size=7,
            stride=2,
            padding=3,
            positional_embedding="learnable",
        )
    )


class SampledTokens(Classifier):
    """A ViT that draws tokens at random; in evaluation, from one seed for each micrograph."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.training:
            return super().forward(pixel_values)
        logits = []
        devices = [pixel_values.device] if pixel_values.is_cuda else []
        with torch.random.fork_rng(devices):
            for image in pixel_values.split(1):
                torch.manual_seed(0)
                logits.append(super().forward(image))
        return torch.cat(logits)


def ats(shapes: Shapes) -> Learner:
    """ViT-tiny with adaptive token sampling: 5.5 M parameters."""
    from vit_pytorch.ats_vit import ViT

    tokens = (shapes.image_size // PATCH) ** 2
    kept = tuple(max(1, int(share * tokens)) for share in KEPT)
    return SampledTokens(ViT(**vit_shapes(shapes), max_tokens_per_depth=kept))


def deepvit(shapes: Shapes) -> Learner:
    """ViT-tiny with re-attention: 5.5 M parameters.

    Six heads of half the width: re-attention normalises over heads, of which three are too few.
    """
    from vit_pytorch.deepvit import DeepViT

    return Classifier(DeepViT(**vit_shapes(shapes, heads=6, dim_head=32)))


def patch_merger(shapes: Shapes) -> Learner:
    """ViT-tiny whose second half sees eight merged tokens: 5.5 M parameters."""
    from vit_pytorch.vit_with_patch_merger import ViT

    return Classifier(ViT(**vit_shapes(shapes)))


def small_data(shapes: Shapes) -> Learner:
    """ViT-tiny with shifted patches and local self-attention: 6.1 M parameters."""
    from vit_pytorch.vit_for_small_dataset import ViT

    return Classifier(ViT(**vit_shapes(shapes)))


def regionvit(shapes: Shapes) -> Learner:
    """RegionViT-Ti (12 M parameters) with eight regions a side, as it has at 224 pixels."""
    from vit_pytorch.regionvit import RegionViT

    window = shapes.image_size // REGIONS
    return Classifier(RegionViT(num_classes=shapes.classes, window_size=window))


class SequencePooling(nn.Module):
    """One vector of all tokens, (batch, tokens, width) to (batch, width), by learnt weights."""

    def __init__(self, width: int):
        super().__init__()
        self.weigh = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.weigh(tokens).softmax(1) * tokens).sum(1)


def compact_vit(shapes: Shapes) -> Learner:
    """CVT-7/16 (3.9 M parameters), a ViT with sequence pooling for its class token."""
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(
        img_size=shapes.image_size,
        patch_size=PATCH,
        embed_dim=256,
        depth=7,
        num_heads=4,
        mlp_ratio=2,
        class_token=False,
        global_pool="",
        num_classes=0,
    )
    return Classifier(nn.Sequential(vit, SequencePooling(256), nn.Linear(256, shapes.classes)))


class Performer(nn.Module):
    """Attention in linear time by random features, and a small network, (batch, tokens, width).

    Plain attention over the 3,136 tokens of the first soft split costs more than all blocks.
    The value is carried past the attention, not the input, whose width is another.
    """

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.key_query_value = nn.Sequential(nn.LayerNorm(width_in), nn.Linear(width_in, 3 * width))
        self.project = nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        # As long as Gaussian ones are on average, like those of Performer's paper. T2T-ViT's own
        # code has them shorter by √2, which are features of another kernel.
        directions = nn.init.orthogonal_(torch.empty(width // 2, width))
        self.register_buffer("directions", directions * math.sqrt(width))

    def features(self, tokens: Tensor) -> Tensor:
        """Positive features; their products are exp(key · query) on average over directions."""
        exponents = tokens @ self.directions.T - tokens.square().sum(-1, keepdim=True) / 2
        return exponents.exp() / math.sqrt(len(self.directions))

    def forward(self, tokens: Tensor) -> Tensor:
        key, query, value = self.key_query_value(tokens).chunk(3, dim=-1)
        key, query = self.features(key), self.features(query)
        mixed = query @ (key.transpose(1, 2) @ value)
        weight = query @ key.sum(1).unsqueeze(-1)
        tokens = value + self.project(mixed / (weight + 1e-8))
        return tokens + self.network(tokens)


class TokensToTokens(nn.Module):
    """T2T-ViT-7: overlapping windows become tokens, three times, then seven blocks of width 256."""

    def __init__(self, image_size: int, classes: int, width: int = 256, inner: int = 64):
        from timm.models.vision_transformer import Block

        super().__init__()
        self.first, self.next = nn.Unfold(7, stride=4, padding=2), nn.Unfold(3, stride=2, padding=1)
        self.mixers = nn.ModuleList([Performer(3 * 7 * 7, inner), Performer(inner * 3 * 3, inner)])
        self.embed = nn.Linear(inner * 3 * 3, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (image_size // PATCH) ** 2 + 1, width))
        for parameter in (self.class_token, self.position):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, num_heads=4, mlp_ratio=2) for _ in range(7)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.first(pixel_values).transpose(1, 2)
        for mixer in self.mixers:
            side = math.isqrt(tokens.shape[1])
            grid = mixer(tokens).transpose(1, 2).unflatten(2, (side, side))
            tokens = self.next(grid).transpose(1, 2)
        tokens = self.embed(tokens)
        class_token = self.class_token.expand(len(tokens), -1, -1)
        tokens = torch.cat([class_token, tokens], dim=1) + self.position
        return self.head(self.blocks(tokens)[:, 0])


def t2t_vit(shapes: Shapes) -> Learner:
    """T2T-ViT-7 with performers between its soft splits: 4.0 M parameters."""
    return Classifier(TokensToTokens(shapes.image_size, shapes.classes))


class Distilled(TwoPhases):
    """A student with a second head that learns the classes which a teacher names (DeiT, "hard").

    The first phase trains the teacher alone. In the second its weights and its batch norm stay.

    Args:
        student: gives (batch, classes) in evaluation, and that of both heads in training.
        teacher: gives (batch, classes).
    """

    def __init__(self, student: nn.Module, teacher: nn.Module):
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.student(pixel_values)

    def first_loss(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.teacher(pixel_values), labels)

    def freeze(self) -> None:
        self.teacher.requires_grad_(False)

    def loss(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        self.teacher.eval()
        named = self.teacher(pixel_values).argmax(-1)
        both = self.student(pixel_values)
        if not self.training:  # The mean of both heads.
            return F.cross_entropy(both, labels)
        return (F.cross_entropy(both[0], labels) + F.cross_entropy(both[1], named)) / 2


def distilled(shapes: Shapes) -> Learner:
    """DeiT-tiny with a distillation token (5.5 M parameters), taught by a ResNet-18."""
    import timm

    student = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=shapes.image_size, num_classes=shapes.classes
    )
    student.set_distilled_training()
    return Distilled(student, timm.create_model("resnet18", num_classes=shapes.classes))


_row = partial(Row, table=2, group=GROUP, learning_rate=5e-4, image_multiple=PATCH)
_vit_pytorch = partial(_row, library="vit-pytorch")
_timm = partial(_row, library="timm")

ROWS = [
    _vit_pytorch("cct", "CCT-7/7x2", build=cct, paper={"top_1": 0.570, "top_5": 0.981}),
    _timm(
        "cvt",
        "CVT-7/16",
        build=compact_vit,
        paper={"top_1": 0.577, "top_5": 0.930},
        note="the compact ViT with sequence pooling: a guess, as the paper cites CvT here too",
    ),
    _vit_pytorch("ats", "ATS", build=ats, paper={"top_1": 0.540, "top_5": 0.973}),
    _vit_pytorch("deepvit", "DeepViT", build=deepvit, paper={"top_1": 0.546, "top_5": 0.988}),
    _timm(
        "deit-tiny-distilled",
        "DeiT-tiny distilled",
        build=distilled,
        paper={"top_1": 0.533, "top_5": 0.955},
        note="teacher: a ResNet-18 that the first half of the budget trains",
    ),
    _vit_pytorch(
        "patch-merger", "PatchMerger", build=patch_merger, paper={"top_1": 0.578, "top_5": 0.975}
    ),
    _vit_pytorch(
        "regionvit",
        "RegionViT-Ti",
        build=regionvit,
        image_multiple=REGIONS,
        paper={"top_1": 0.606, "top_5": 0.948},
    ),
    _timm(
        "t2t-vit-7",
        "T2T-ViT-7",
        build=t2t_vit,
        paper={"top_1": 0.749, "top_5": 0.992},
        note="positions are learnt, not sines",
    ),
    _vit_pytorch("vit-sd", "ViT-SD", build=small_data, paper={"top_1": 0.597, "top_5": 0.973}),
]
