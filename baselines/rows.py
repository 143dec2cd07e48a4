"""What a row of a table is: a name, what the paper prints, and how it is trained and scored.

What is special about it:
- a row imports its library only when it is built, so all rows can be listed without them;
- most rows classify, and name a builder of a library (`Row`). Others, which answer or need more
  than pictures, say themselves how they are trained and scored (`TableRow.train_and_score`);
- one learning rate does not fit all (VGG, Swin and RegionViT explode at 1e-3): a row names its own,
  and the tables show it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from baselines.classifying import train_classifier
from baselines.learners import Learner
from baselines.outcome import Outcome
from baselines.settings import Run


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
class TableRow:
    """A row of any kind.

    Attributes:
        name: as it is typed, "resnet-18".
        title: as a table prints it, "ResNet-18".
        table: number of the paper's table; None where the paper has no such row.
        group: the table's own heading, "ConvNets".
        library: the distribution that has the model, "timm"; its version is recorded.
        paper: figures that the paper prints, named as in `Outcome.figures`, between 0 and 1.
        learning_rate: Adam's, after the warm-up.
        warmup_steps: steps over which it rises from 0.
        pretrained: folder or Hub id of the weights to start from, which `--pretrained` replaces;
            None for a row that starts from random ones.
        note: what is not as in the paper, or not known.
    """

    name: str
    title: str
    table: int | None
    group: str
    library: str
    paper: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    learning_rate: float = field(default=1e-3, kw_only=True)
    warmup_steps: int = field(default=100, kw_only=True)
    pretrained: str | None = field(default=None, kw_only=True)
    note: str = field(default="", kw_only=True)

    def train_and_score(self, run: Run) -> Outcome:
        """One fold and one seed, from the first weights to scores.

        Raises:
            RowFailed: it cannot be trained. Any other error is reported with its traceback.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Row(TableRow):
    """A row that classifies.

    Attributes:
        build: makes the learner, with random weights or with `Shapes.pretrained`.
        image_size: the only one that the architecture takes; None for that of the run.
        image_multiple: that of the run is rounded up to a multiple of it.
    """

    build: Callable[[Shapes], Learner]
    image_size: int | None = field(default=None, kw_only=True)
    image_multiple: int = field(default=1, kw_only=True)

    def size(self, image_size: int) -> int:
        """Height and width in pixels of what the row sees in a run at `image_size`."""
        return self.image_size or -(-image_size // self.image_multiple) * self.image_multiple

    def train_and_score(self, run: Run) -> Outcome:
        return train_classifier(
            lambda classes, size: self.build(Shapes(classes, size, self.pretrained)),
            run,
            self.learning_rate,
            self.warmup_steps,
            self.size(run.settings.image_size),
        )
