"""The card of an exported dataset: counts, cost, provenance and licences."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from huggingface_hub import DatasetCard, DatasetCardData

from mvaema.micrographs.schema import OUTCOMES
from mvaema.teacher.money import Price, dollars

# Spelled as the Hub's `license` field wants it; anything else is `other`.
HUB_LICENCES = {"cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "mit", "apache-2.0"}


@dataclass
class Summary:
    """What an export holds: for the card, and for the console.

    Attributes:
        absent: images that were left out, since the last run did not meet them.
        outdated: questions that were left out, since they were asked under other labels.
        damaged: images that were left out, since their prepared file is missing or damaged.
    """

    images: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_question: dict[str, Counter[str]] = field(default_factory=dict)
    categories: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    absent: int = 0
    outdated: int = 0
    damaged: int = 0

    def __str__(self) -> str:
        outcomes = ", ".join(f"{self.outcomes[name]:,} {name}" for name in OUTCOMES)
        lines = [f"{self.images:,} micrographs, {self.outcomes.total():,} questions: {outcomes}"]
        if self.absent:
            lines.append(
                f"Left out: {self.absent:,} micrographs that are no longer among --images. Their "
                "answers stay in the journal and count again when they are back."
            )
        if self.outdated:
            lines.append(
                f"Left out: {self.outdated:,} answers that were given under another category or "
                "scale than their micrograph has now. They stay in the journal."
            )
        if self.damaged:
            lines.append(
                f"Left out: {self.damaged:,} micrographs whose prepared image is missing or "
                "damaged. Delete damaged ones and rerun the command that asks: it prepares them "
                "again and asks nothing twice."
            )
        return "\n".join(lines)


CARD = """---
{metadata}
---

# Electron micrographs with a teacher's answers

{images:,} electron micrographs, each with questions and the answers of a vision-language model, the
teacher. No person checked the answers, and sizes are estimates unless the instrument recorded the
scale.

```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", split="train")
answers = [qa for qa in rows[0]["qa"] if qa["outcome"] == "ok"]
```

Every reply is included. `outcome` is `ok`, `truncated`, `refused`, `filtered`, `empty` or `error`;
train on `ok`. `flags` marks answers worth a second look. `reasoning` is what the teacher wrote
before its answer.

## Counts

{outcomes}

{categories}

| question group | ok | other outcomes |
|---|---|---|
{questions}

{flags}

## Provenance

- Teacher: `{teacher_model}`; the server named itself: {models}.
- Request parameters (profile `{profile}`): {parameters}.
- Prompt version `{prompt_version}`, digest `{prompt_digest}`.
- Preparation of the images: {preparation}; re-encoded from pixels alone.
- Asked from {first_day} to {last_day}.
- Tokens of these answers: {prompt_tokens:,} in, {completion_tokens:,} out.
- Cost of all attempts: {cost}.

## Sources and licences

Each row states its `source` and `licence`. The terms of the teacher's provider may restrict which
models may be trained on its answers.

{sources}

{licences}
"""


def dataset_card(
    summary: Summary, configuration: dict, price: Price | None, when: list
) -> DatasetCard:
    """The card of one export.

    Args:
        summary: what it holds.
        configuration: of the journals.
        price: of the model, None when it is unknown.
        when: (first, last) Unix times of the requests, per journal.
    """
    times = [time for pair in when for time in pair if time is not None]
    first_day, last_day = (
        datetime.fromtimestamp(time, UTC).date().isoformat() for time in (min(times), max(times))
    )
    if price is None:
        cost = "unknown (the price of the model is not in the prices file)"
    else:
        cost = f"{dollars(summary.cost)} at the prices of {price.as_of} ({price.source})"
    questions = "\n".join(
        f"| `{name}` | {counts['ok']:,} | {counts.total() - counts['ok']:,} |"
        for name, counts in summary.by_question.items()
    )
    names = ("teacher_model", "profile", "prompt_version", "prompt_digest")
    return DatasetCard(
        CARD.format(
            metadata=_metadata(summary).to_yaml(),
            images=summary.images,
            outcomes=_table("outcome", Counter({n: summary.outcomes[n] for n in OUTCOMES})),
            categories=_table("category", summary.categories),
            questions=questions,
            flags=_table("flag", summary.flags) if summary.flags else "No answer is flagged.",
            **{name: configuration[name] for name in names},
            models=_list(summary.models),
            parameters=", ".join(f"{k} {v}" for k, v in configuration["parameters"].items()),
            preparation=", ".join(f"{k} {v}" for k, v in configuration["preparation"].items()),
            first_day=first_day,
            last_day=last_day,
            prompt_tokens=summary.prompt_tokens,
            completion_tokens=summary.completion_tokens,
            cost=cost,
            sources=_table("source", summary.sources),
            licences=_table("licence", summary.licences),
        )
    )


def _metadata(summary: Summary) -> DatasetCardData:
    known = {name.lower() for name in summary.licences}
    return DatasetCardData(
        license=known.pop() if len(known) == 1 and known <= HUB_LICENCES else "other",
        language="en",
        task_categories=["visual-question-answering"],
        tags=["electron-microscopy", "synthetic-instructions"],
        pretty_name="Electron micrographs with a teacher's answers",
    )


def _table(title: str, counts: Counter[str]) -> str:
    rows = "\n".join(f"| {name} | {count:,} |" for name, count in counts.most_common())
    return f"| {title} | count |\n|---|---|\n{rows}"


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"`{name}` ({count:,})" for name, count in counts.most_common()) or "nothing"
