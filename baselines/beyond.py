"""Beyond the paper: what people pick today, and controls.

What is special about it:
- encoders that have learned to see elsewhere are fine-tuned, at the rates that their authors and
  users take for it. `--pretrained` takes any other folder or Hub id;
- a linear probe asks how much an encoder knows already: logistic regression on features of each
  micrograph as it is, computed once, its regularisation chosen on the validation part;
- the same encoder with random weights, probed, says what of that is the architecture's;
- MicroNet's encoders (NASA) are files of weights of torchvision's networks, not of a model hub.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn

from baselines.classifying import outcome
from baselines.convnets import timm_model
from baselines.data import Micrographs, Part
from baselines.encoders import Encoder, Probe, Tuned, open_encoder, random_encoder
from baselines.learners import Classifier, Learner
from baselines.outcome import Outcome
from baselines.rows import Row, Shapes, TableRow
from baselines.settings import Run
from baselines.training import Budget, History, RowFailed

GROUP = "Beyond the paper"
REGULARISATION = (1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths that a probe tries
NEVER = -100.0  # logit of a category without training micrographs
MICRONET = "resnet50_pretrained_microscopynet_v1.1.pth.tar"


class SmallCNN(nn.Sequential):
    """Four 3 x 3 convolutions, each halving the image, and the mean of what is left."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (32, 64, 128, 256)):
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.ReLU()]
        super().__init__(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)
        )


def tuned(shapes: Shapes) -> Learner:
    """A pre-trained encoder, all of it trained."""
    return Tuned(open_encoder(shapes.pretrained, shapes.image_size), shapes.classes)


def micronet(shapes: Shapes) -> Learner:
    """ResNet-50 with MicroNet's weights.

    Raises:
        RowFailed: the file is not there, or holds other weights.
    """
    file = Path(shapes.pretrained)
    if not file.is_file():
        raise RowFailed(
            f"{file} is no file. Download {MICRONET} as github.com/nasa/pretrained-microscopy-"
            "models says, and name it with --pretrained."
        )
    weights = torch.load(file, map_location="cpu", weights_only=True)
    weights = weights.get("state_dict", weights)
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    model = timm_model("resnet50", shapes)
    kept = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    missing, unexpected = model.load_state_dict(kept, strict=False)
    if set(missing) - {"fc.weight", "fc.bias"} or unexpected:
        raise RowFailed(f"{file} does not hold the weights of a ResNet-50.")
    return Classifier(model)


@dataclass(frozen=True)
class ProbeRow(TableRow):
    """Logistic regression on what a frozen encoder makes of each micrograph.

    Attributes:
        open: the encoder, for `pretrained` and an image size.
    """

    open: Callable[[str | None, int], Encoder]

    def train_and_score(self, run: Run) -> Outcome:
        micrographs = run.data.micrographs(run.settings.image_size)
        set_seed(run.seed)
        encoder = self.open(self.pretrained, run.settings.image_size)
        probe = Probe(encoder, len(micrographs.categories)).to(run.accelerator.device).eval()
        budget = Budget(run.settings.budget, run.accelerator.device)
        order = np.random.default_rng(run.seed).permutation(len(micrographs.train.labels))
        valid = features(probe.encoder, micrographs, micrographs.validation)
        train = features(probe.encoder, micrographs, micrographs.train, order, budget)
        order = order[: len(train)]
        layer = regression(
            (train, micrographs.train.labels[order]),
            (valid, micrographs.validation.labels),
            len(micrographs.categories),
            None if micrographs.counts is None else micrographs.counts[order],
        )
        probe.set_layer(*layer)
        history = History(
            micrographs=len(train),
            stopped="epochs" if len(train) == len(micrographs.train.labels) else "budget",
        )
        history.seconds, history.processor_seconds = budget.totals()
        found = outcome(probe, micrographs, {"training": history})
        return replace(found, trainable_parameters=sum(p.numel() for p in probe.head.parameters()))


@torch.no_grad()
def features(
    encoder: Encoder,
    micrographs: Micrographs,
    part: Part,
    order: np.ndarray | None = None,
    budget: Budget | None = None,
) -> np.ndarray:
    """(micrographs, width) of a part, in its order or another one, until the budget is spent."""
    device, found = next(encoder.parameters()).device, []
    for batch in micrographs.plain_batches(part, order):
        found.append(encoder(batch.pixel_values.to(device)).double().cpu().numpy())
        if budget is not None and budget.over:
            break
    return np.concatenate(found)


def regression(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
    weights: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """Logistic regression on standardised features, the strength of its regularisation chosen.

    Args:
        train, validation: features (n, width) and labels (n,).
        classes: how many there are; a class that `train` lacks is never predicted.
        weights: (n,), of the training micrographs.

    Returns:
        (classes, width) and (classes,), for features as they are.

    Raises:
        RowFailed: all training micrographs have one label.
    """
    inputs, labels = train
    present = np.unique(labels)
    if len(present) < 2:
        raise RowFailed("the training micrographs seen within the budget have one category.")
    mean, std = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    known = np.isin(validation[1], present)
    best = None
    for strength in REGULARISATION:
        model = LogisticRegression(C=strength, max_iter=2000)
        model.fit((inputs - mean) / std, labels, sample_weight=weights)
        guesses = model.predict_proba((validation[0][known] - mean) / std)
        loss = log_loss(validation[1][known], guesses, labels=present)
        if best is None or loss < best[0]:
            best = loss, model
    model = best[1]
    # Of two classes scikit-learn keeps one plane, that of the second.
    coefficients, intercepts = model.coef_, model.intercept_
    if len(present) == 2:
        coefficients = np.stack([-coefficients[0], coefficients[0]]) / 2
        intercepts = np.array([-intercepts[0], intercepts[0]]) / 2
    weight, bias = np.zeros((classes, len(mean))), np.full(classes, NEVER)
    weight[present] = coefficients / std
    bias[present] = intercepts - (coefficients * mean / std).sum(axis=1)
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def _random_dinov2(pretrained: str | None, image_size: int) -> Encoder:
    from transformers import Dinov2Config

    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=image_size)
    return random_encoder(config, image_size)


def _tuned(name: str, title: str, pretrained: str, learning_rate: float, note: str = "") -> Row:
    return Row(
        *(name, title, None, GROUP, "transformers", tuned),
        learning_rate=learning_rate,
        pretrained=pretrained,
        note=note,
    )


ROWS = [
    Row(
        *("small-cnn", "CNN of four layers, from scratch", None, GROUP, "torch"),
        lambda shapes: Classifier(SmallCNN(shapes.classes)),
    ),
    _tuned("convnext-tiny-tuned", "ConvNeXt-Tiny, fine-tuned", "facebook/convnext-tiny-224", 1e-4),
    _tuned("resnet-50-tuned", "ResNet-50, fine-tuned", "microsoft/resnet-50", 3e-4),
    _tuned("dinov2-small-tuned", "DINOv2-small, fine-tuned", "facebook/dinov2-small", 5e-5),
    _tuned("dinov2-base-tuned", "DINOv2-base, fine-tuned", "facebook/dinov2-base", 3e-5),
    _tuned("siglip2-tuned", "SigLIP2-base, fine-tuned", "google/siglip2-base-patch16-224", 3e-5),
    Row(
        *("micronet-tuned", "MicroNet's ResNet-50, fine-tuned", None, GROUP, "timm", micronet),
        learning_rate=3e-4,
        pretrained=MICRONET,
        note="its weights are a file to download",
    ),
    _tuned(
        *("encoder-tuned", "Any encoder, fine-tuned", "facebook/dinov2-small", 1e-4),
        note="for --pretrained",
    ),
    ProbeRow(
        *("encoder-probe", "Any encoder, frozen, linear probe", None, GROUP, "transformers"),
        open_encoder,
        pretrained="facebook/dinov2-small",
        note="for --pretrained",
    ),
    ProbeRow(
        *("random-probe", "DINOv2-small with random weights, frozen, linear probe"),
        *(None, GROUP, "transformers"),
        _random_dinov2,
        note="a control",
    ),
]
