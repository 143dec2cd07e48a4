"""Encoders that first compare views of micrographs, without their categories; then a linear probe.

What is special about it:
- heads, losses and memory banks are lightly's, encoders timm's: ResNet-18 for the paper's group
  "VSL", ViT-tiny for DINO (and for MAE and SimMIM, `masked.py`);
- banks hold 512 vectors and momentum encoders follow at 0.99 a step, as small data sets and budgets
  ask for: the published 65,536 and 0.996 to 0.999 would still be those of the start;
- a batch needs two micrographs or more: batch norm and negatives come from it.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from baselines.learners import Learner
from baselines.masked import MAE, SimMIM
from baselines.probed import PATCH, Probed, vit_tiny
from baselines.rows import Row, Shapes
from baselines.views import draw, looks

BANK = 512
MOMENTUM = 0.99


class Momentum(nn.Module):
    """An encoder and its projector that follow others slowly and have no gradients.

    Args:
        encoder: it is copied.
        projector: it is copied into `twin`.
        twin: of the projector's shapes.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, twin: nn.Module):
        super().__init__()
        self.encoder, self.projector = copy.deepcopy(encoder), twin
        self.projector.load_state_dict(projector.state_dict())
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projector(self.encoder(pixel_values))

    def follow(self, encoder: nn.Module, projector: nn.Module) -> None:
        """Move towards them after a step of their optimizer."""
        from lightly.models.utils import update_momentum

        update_momentum(encoder, self.encoder, m=MOMENTUM)
        update_momentum(projector, self.projector, m=MOMENTUM)


class Twins(Probed):
    """Barlow Twins and SimCLR: two views of a micrograph are to agree.

    Args:
        shapes: classes and image size.
        projector: features (batch, 512) to what `criterion` compares.
        criterion: a loss of two views.
    """

    def __init__(self, shapes: Shapes, projector: nn.Module, criterion: nn.Module):
        import timm

        encoder = timm.create_model("resnet18", num_classes=0)
        super().__init__(encoder, encoder.num_features, shapes.classes)
        self.transform = looks(shapes.image_size, 0.2)
        self.projector, self.criterion = projector, criterion

    def views(self, pixel_values: Tensor) -> list[Tensor]:
        return [draw(self.transform, pixel_values) for _ in range(2)]

    def project(self, view: Tensor) -> Tensor:
        return self.projector(self.encoder(view))

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        first, second = self.views(pixel_values)
        return self.criterion(self.project(first), self.project(second))


class Predicted(Twins):
    """SimSiam: the projection of one view is to be predicted from the other."""

    def __init__(
        self, shapes: Shapes, projector: nn.Module, predictor: nn.Module, criterion: nn.Module
    ):
        super().__init__(shapes, projector, criterion)
        self.predictor = predictor

    def targets(self, views: list[Tensor], projections: list[Tensor]) -> list[Tensor]:
        """What is to be predicted of each view, without gradients."""
        return [projection.detach() for projection in projections]

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        views = self.views(pixel_values)
        projections = [self.project(view) for view in views]
        predictions = [self.predictor(projection) for projection in projections]
        targets = self.targets(views, projections)
        pairs = zip(targets, reversed(predictions), strict=True)
        return sum(self.criterion(target, prediction) for target, prediction in pairs) / 2


class Neighbours(Predicted):
    """NNCLR: a view's target is its nearest neighbour among those of the last batches."""

    def __init__(
        self,
        shapes: Shapes,
        projector: nn.Module,
        predictor: nn.Module,
        criterion: nn.Module,
        bank: nn.Module,
    ):
        super().__init__(shapes, projector, predictor, criterion)
        self.bank = bank

    def targets(self, views: list[Tensor], projections: list[Tensor]) -> list[Tensor]:
        first, second = super().targets(views, projections)
        return [self.bank(first, update=False), self.bank(second, update=True)]


class Followed(Predicted):
    """BYOL: a view's target is the projection of a momentum encoder."""

    def __init__(
        self, shapes: Shapes, projector: nn.Module, predictor: nn.Module, criterion: nn.Module
    ):
        super().__init__(shapes, projector, predictor, criterion)
        self.teacher = Momentum(self.encoder, projector, copy.deepcopy(projector))

    def targets(self, views: list[Tensor], projections: list[Tensor]) -> list[Tensor]:
        return [self.teacher(view) for view in views]

    def after_step(self) -> None:
        self.teacher.follow(self.encoder, self.projector)


class Queued(Twins):
    """MoCo: a view is to be told from those that a momentum encoder saw in the last batches."""

    def __init__(self, shapes: Shapes, projector: nn.Module, criterion: nn.Module):
        super().__init__(shapes, projector, criterion)
        self.teacher = Momentum(self.encoder, projector, copy.deepcopy(projector))

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        first, second = self.views(pixel_values)
        return self.criterion(self.project(first), self.teacher(second))

    def after_step(self) -> None:
        self.teacher.follow(self.encoder, self.projector)


class Distilling(Probed):
    """DINO: crops of a micrograph are to be sorted as a momentum encoder sorts two large ones.

    Four small crops of 3/7 of the side, as 96 pixels are of 224. The probe reads the momentum
    encoder, as in DINO's own evaluation.
    """

    def __init__(self, shapes: Shapes, output: int = 2048):
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        encoder = vit_tiny(shapes.image_size, dynamic_img_size=True)
        small = max(2, round(shapes.image_size * 3 / 7 / PATCH)) * PATCH
        super().__init__(encoder, encoder.num_features, shapes.classes)
        self.crops = (*[looks(shapes.image_size, 0.4)] * 2, *[looks(small, 0.05, 0.4)] * 4)
        # Two, because torch cannot copy a module of its old `weight_norm`, which lightly uses.
        self.projector, twin = (
            DINOProjectionHead(encoder.num_features, 512, 64, output) for _ in range(2)
        )
        self.teacher = Momentum(self.encoder, self.projector, twin)
        self.criterion = DINOLoss(output)

    def features(self, pixel_values: Tensor) -> Tensor:
        return self.teacher.encoder(pixel_values)

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        views = [draw(crop, pixel_values) for crop in self.crops]
        taught = [self.teacher(view) for view in views[:2]]
        return self.criterion(taught, [self.projector(self.encoder(view)) for view in views])

    def after_step(self) -> None:
        self.teacher.follow(self.encoder, self.projector)


def barlow_twins(shapes: Shapes) -> Learner:
    from lightly.loss import BarlowTwinsLoss
    from lightly.models.modules import BarlowTwinsProjectionHead

    return Twins(shapes, BarlowTwinsProjectionHead(512, 1024, 1024), BarlowTwinsLoss())


def simclr(shapes: Shapes) -> Learner:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    return Twins(shapes, SimCLRProjectionHead(512, 512, 128), NTXentLoss())


def byol(shapes: Shapes) -> Learner:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

    projector, predictor = BYOLProjectionHead(512, 1024, 256), BYOLPredictionHead(256, 1024, 256)
    return Followed(shapes, projector, predictor, NegativeCosineSimilarity())


def moco(shapes: Shapes) -> Learner:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead

    loss = NTXentLoss(temperature=0.2, memory_bank_size=(BANK, 128))
    return Queued(shapes, MoCoProjectionHead(512, 512, 128), loss)


def nnclr(shapes: Shapes) -> Learner:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import (
        NNCLRPredictionHead,
        NNCLRProjectionHead,
        NNMemoryBankModule,
    )

    projector, predictor = NNCLRProjectionHead(512, 512, 128), NNCLRPredictionHead(128, 512, 128)
    bank = NNMemoryBankModule(size=(BANK, 128))
    return Neighbours(shapes, projector, predictor, NTXentLoss(temperature=0.1), bank)


def simsiam(shapes: Shapes) -> Learner:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

    projector, predictor = (
        SimSiamProjectionHead(512, 512, 512),
        SimSiamPredictionHead(512, 128, 512),
    )
    return Predicted(shapes, projector, predictor, NegativeCosineSimilarity())


_resnet = partial(Row, table=2, group="Self-supervised (VSL)", library="lightly")
_vit = partial(
    Row,
    table=2,
    group="Vision transformers",
    library="lightly",
    learning_rate=5e-4,
    image_multiple=PATCH,
)

ROWS = [
    _vit(
        "dino",
        "DINO",
        build=Distilling,
        paper={"top_1": 0.049, "top_5": 0.437},
        note="four small crops; momentum and the teacher's temperature stay the same",
    ),
    _vit("mae", "MAE", build=MAE, paper={"top_1": 0.202, "top_5": 0.491}),
    _vit("simmim", "SimMIM", build=SimMIM, paper={"top_1": 0.171, "top_5": 0.646}),
    _resnet(
        "barlow-twins", "Barlow Twins", build=barlow_twins, paper={"top_1": 0.148, "top_5": 0.410}
    ),
    _resnet("simclr", "SimCLR", build=simclr, paper={"top_1": 0.130, "top_5": 0.379}),
    _resnet("byol", "BYOL", build=byol, paper={"top_1": 0.143, "top_5": 0.453}),
    _resnet("moco", "MoCo", build=moco, paper={"top_1": 0.169, "top_5": 0.472}),
    _resnet("nnclr", "NNCLR", build=nnclr, paper={"top_1": 0.158, "top_5": 0.563}),
    _resnet("simsiam", "SimSiam", build=simsiam, paper={"top_1": 0.188, "top_5": 0.535}),
]
