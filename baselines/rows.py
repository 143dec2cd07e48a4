"""What a row of a table is: a name, what the paper prints, and how to build what is trained.

What is special about it:
- a row imports its library only when it is built, so all rows can be listed without them;
- one learning rate does not fit all (VGG, Swin and RegionViT explode at 1e-3): a row names its own,
  and the tables show it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from baselines.learners import Learner


@dataclass(frozen=True)
class Shapes:
    """What a row is built for.

    Attributes:
        classes: number of categories.
        image_size: height and width in pixels.
        pretrained: folder or Hub id of the weights to start from; None for random ones.
    """

    classes: int
    image_size: int
    pretrained: str | None = None


@dataclass(frozen=True)
class Row:
    """A row that classifies.

    Attributes:
        name: as it is typed, "resnet-18".
        title: as a table prints it, "ResNet-18".
        table: number of the paper's table; None where the paper has no such row.
        group: the table's own heading, "ConvNets".
        library: the distribution that has the model, "timm"; its version is recorded.
        build: makes the learner, with random weights or with `Shapes.pretrained`.
        paper: figures that the paper prints, `top_1` and `top_5` between 0 and 1.
        learning_rate: Adam's, after the warm-up.
        warmup_steps: steps over which it rises from 0.
        image_size: the only one that the architecture takes; None for that of the run.
        pretrained: default of `Shapes.pretrained`, a Hub id; None for a row that starts from
            random weights.
        note: what is not as in the paper, or not known.
    """

    name: str
    title: str
    table: int | None
    group: str
    library: str
    build: Callable[[Shapes], Learner]
    paper: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    image_size: int | None = None
    pretrained: str | None = None
    note: str = ""
