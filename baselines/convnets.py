"""The paper's convolutional networks.

What is special about it:
- GoogLeNet is trained with both of its auxiliary losses, each counted 0.3, as its authors did;
- GoogLeNet starts from PyTorch's usual weights. With torchvision's own, which are smaller, it does
  not tell two pictures apart in evaluation until its batch norms have seen many batches;
- networks without batch norm, and VGG, do not learn at Adam's 1e-3.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from baselines.learners import Classifier, Learner
from baselines.rows import Row, Shapes

AUXILIARY = 0.3  # weight of each auxiliary loss (Szegedy et al. 2015)


class GoogLeNet(Learner):
    """torchvision's GoogLeNet."""

    def __init__(self, classes: int):
        super().__init__()
        from torchvision.models import googlenet

        self.model = googlenet(num_classes=classes, aux_logits=True, init_weights=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        output = self.model(pixel_values)
        return output.logits if self.training else output

    def loss(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        output = self.model(pixel_values)
        if not self.training:
            return F.cross_entropy(output, labels)
        first, second = output.aux_logits1, output.aux_logits2
        auxiliary = F.cross_entropy(first, labels) + F.cross_entropy(second, labels)
        return F.cross_entropy(output.logits, labels) + AUXILIARY * auxiliary


def alexnet(shapes: Shapes) -> Learner:
    from torchvision.models import alexnet

    return Classifier(alexnet(num_classes=shapes.classes))


def squeezenet(shapes: Shapes) -> Learner:
    from torchvision.models import squeezenet1_1

    return Classifier(squeezenet1_1(num_classes=shapes.classes))


def timm_model(name: str, shapes: Shapes, **options) -> nn.Module:
    """A model of timm with random weights.

    Args:
        name: timm's own.
        options: of that model.
    """
    import timm

    return timm.create_model(name, pretrained=False, num_classes=shapes.classes, **options)


def _timm(name: str):
    return lambda shapes: Classifier(timm_model(name, shapes))


def _row(name, title, library, build, top_1, top_5, **more) -> Row:
    paper = {"top_1": top_1, "top_5": top_5}
    return Row(name, title, 2, "ConvNets", library, build, paper=paper, **more)


ROWS = [
    _row("alexnet", "AlexNet", "torchvision", alexnet, 0.528, 0.827, learning_rate=1e-4),
    _row("densenet-121", "DenseNet-121", "timm", _timm("densenet121"), 0.569, 0.929),
    _row(
        "resnet-18",
        "ResNet-18",
        "timm",
        _timm("resnet18"),
        0.485,
        0.897,
        note="the paper says ResNet, not which",
    ),
    _row(
        "resnet-50",
        "ResNet-50",
        "timm",
        _timm("resnet50"),
        0.485,
        0.897,
        note="the paper says ResNet, not which",
    ),
    _row("vgg-11-bn", "VGG-11-bn", "timm", _timm("vgg11_bn"), 0.538, 0.808, learning_rate=1e-4),
    _row(
        "googlenet",
        "GoogLeNet",
        "torchvision",
        lambda shapes: GoogLeNet(shapes.classes),
        0.609,
        0.969,
    ),
    _row(
        "squeezenet-1.1",
        "SqueezeNet 1.1",
        "torchvision",
        squeezenet,
        0.404,
        0.698,
        learning_rate=3e-4,
    ),
]
