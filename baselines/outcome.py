"""What a run of a row comes to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from baselines.training import History


@dataclass(frozen=True)
class Outcome:
    """What a run of a row comes to.

    Attributes:
        figures: scores by name, numbers. `NAME_interval`, [low, high], is the interval of NAME.
            Classifiers have `top_1`, `top_5`, `macro_f1`, `blind_top_1`, `blind_macro_f1`;
            answering rows `bleu_2`, `bleu_4`, `rouge_1`, `rouge_2`, `rouge_l`, `meteor`,
            `image_gain`, `among_eight`, `false_claims` and, of the blind twin, `blind_NAME`.
        parameters, trainable_parameters: their numbers; the second of the last phase.
        training: how each phase went, by name; none for a row that is not trained.
        details: whatever else the result should keep, for JSON. A table shows `gflop`, of one
            micrograph forward.
    """

    figures: Mapping[str, float | list | None]
    parameters: int = 0
    trainable_parameters: int = 0
    training: Mapping[str, History] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)
