"""The journal to a micrograph dataset, its card, and, only when asked, a hub.

What is special about it:
- it reads a snapshot, so it can run while answers still arrive, as often as one likes;
- all outcomes are exported, with what is needed to choose: outcome, flags, reasoning apart from
  the answer, teacher model, prompt version; training takes `ok`;
- the folder `dataset` is replaced when the new one is complete on the disk, never before.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from mvaema.hub import private_repository
from mvaema.micrographs.schema import OUTCOMES
from mvaema.micrographs.shards import write_shards
from mvaema.teacher.asking import read
from mvaema.teacher.flags import Flagger, is_loop
from mvaema.teacher.journal import Journal, JournalError, PreparedImage, journals, rows_in_order
from mvaema.teacher.money import Price, dollars, spent
from mvaema.teacher.replies import Reading, read_reply

# Spelled as the Hub's `license` field wants it; anything else is `other`.
HUB_LICENCES = {"cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "mit", "apache-2.0"}
UNKNOWN = "unknown"


@dataclass
class Summary:
    """What an export holds, for the card and the console."""

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

    def __str__(self) -> str:
        outcomes = ", ".join(f"{self.outcomes[name]:,} {name}" for name in OUTCOMES)
        return f"{self.images:,} micrographs, {self.outcomes.total():,} questions: {outcomes}"


def export(folder: Path, price: Price | None = None) -> tuple[Path, Summary]:
    """Write `folder/dataset` from all journals in `folder`.

    Args:
        folder: an output folder of the teacher.
        price: of the model, for the card.

    Returns:
        The dataset folder and what it holds.

    Raises:
        JournalError: there is no journal, or no reply in it, or the journals differ in their
            configuration.
        OSError: the disk is full or read-only; what was there stays.
    """
    paths = journals(folder)
    for path in paths:
        # What a killed run did not come to read; a run that goes on does so itself.
        with suppress(JournalError), Journal(path) as journal:
            journal.read_unread(read)
    with ExitStack() as stack:
        opened = [stack.enter_context(Journal(path, read_only=True)) for path in paths]
        configurations = [journal.configuration for journal in opened]
        if not opened or configurations[0] is None:
            raise JournalError(f"{folder}: no journal of the teacher is there; check --output.")
        for path, other in zip(paths, configurations, strict=True):
            if other != configurations[0]:
                raise JournalError(
                    f"{path.name} and {paths[0].name} have different configurations; keep them "
                    "in different folders."
                )
        configuration = configurations[0]
        snapshots = [journal.snapshot() for journal in opened]
        for snapshot in snapshots:
            stack.callback(snapshot.close)

        def answered() -> Iterator[tuple[PreparedImage, list]]:
            for snapshot in snapshots:
                yield from rows_in_order(snapshot)

        flagger = Flagger()
        for _, replies in answered():
            for row in replies:
                if row["outcome"] == "ok":
                    flagger.add(row["question_id"], _read(row).answer)
        flagger.finish()

        summary = Summary()
        partial = folder / "dataset.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            write_shards(_rows(answered(), folder, configuration, flagger, summary), partial)
            if not summary.images:
                raise JournalError(f"{folder}: there are no replies yet, so nothing to export.")
            costs = [spent(j, price, configuration["max_tokens"]) for j in opened]
            summary.cost = None if None in costs else sum(costs)
            when = [
                journal.query("SELECT min(asked_at), max(asked_at) FROM replies")[0]
                for journal in opened
            ]
            card = dataset_card(summary, configuration, price, when)
            card.save(partial / "README.md")
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    target, old = folder / "dataset", folder / "dataset.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target, summary


def _read(row) -> Reading:
    return read_reply(row["status"], row["raw"], row["problem"])


def _rows(answered, folder: Path, configuration: dict, flagger: Flagger, summary: Summary):
    """Rows of the dataset; counts them on the way."""
    order = {name: i for i, name in enumerate(configuration["questions"])}
    for image, replies in answered:
        if not replies:
            continue
        replies.sort(key=lambda row: order.get(row["question_id"], len(order)))
        qa = [_answer(row, configuration, flagger, summary) for row in replies]
        summary.images += 1
        summary.categories[image.category or UNKNOWN] += 1
        summary.licences[image.licence or UNKNOWN] += 1
        summary.sources[image.source or UNKNOWN] += 1
        yield {
            "image": {"bytes": (folder / image.file).read_bytes()},
            "image_id": image.image_id,
            "category": image.category,
            "caption": image.caption,
            "pixel_size_nm": image.pixel_size_nm,
            "scale_bar": image.scale_bar,
            "group": image.group,
            "qa": qa,
            "source": image.source,
            "licence": image.licence,
        }


def _answer(row, configuration: dict, flagger: Flagger, summary: Summary) -> dict:
    reading = _read(row)
    question_id = row["question_id"]
    flags = []
    if reading.outcome == "ok":
        flags = flagger.next(question_id)
    if reading.answer is not None:
        flags += ["repetition"] if is_loop(reading.answer) else []
        flags += [] if reading.marked else ["unmarked"]
    summary.outcomes[reading.outcome] += 1
    summary.by_question.setdefault(question_id, Counter())[reading.outcome] += 1
    summary.flags.update(flags)
    summary.prompt_tokens += reading.prompt_tokens or 0
    summary.completion_tokens += reading.completion_tokens or 0
    if reading.returned_model:
        summary.models[reading.returned_model] += 1
    return {
        "question_id": question_id,
        "question": configuration["questions"][question_id],
        "answer": reading.answer,
        "outcome": reading.outcome,
        "reasoning": reading.reasoning,
        "flags": flags,
        "teacher_model": reading.returned_model or configuration["teacher_model"],
        "prompt_version": configuration["prompt_version"],
    }


def dataset_card(
    summary: Summary, configuration: dict, price: Price | None, when: list
) -> DatasetCard:
    """The card: counts, cost, provenance and licence of one export.

    Args:
        when: (first, last) Unix times of the requests, per journal.
    """
    times = [time for pair in when for time in pair if time is not None]
    days = [datetime.fromtimestamp(t, UTC).date().isoformat() for t in (min(times), max(times))]
    known = {name.lower() for name in summary.licences}
    licence = known.pop() if len(known) == 1 and known <= HUB_LICENCES else "other"
    data = DatasetCardData(
        license=licence,
        language="en",
        task_categories=["visual-question-answering"],
        tags=["electron-microscopy", "synthetic-instructions"],
        pretty_name="Electron micrographs with a teacher's answers",
    )
    if price is None:
        cost = "unknown (the price of the model is not in the prices file)"
    else:
        cost = f"{dollars(summary.cost)} at the prices of {price.as_of} ({price.source})"
    sampling = ", ".join(f"{k} {v}" for k, v in configuration["parameters"].items())
    preparation = ", ".join(f"{k} {v}" for k, v in configuration["preparation"].items())
    outcomes = Counter({name: summary.outcomes[name] for name in OUTCOMES})
    questions = "\n".join(
        f"| `{name}` | {counts['ok']:,} | {counts.total() - counts['ok']:,} |"
        for name, counts in summary.by_question.items()
    )
    content = f"""---
{data.to_yaml()}
---

# Electron micrographs with a teacher's answers

{summary.images:,} electron micrographs, each with questions and the answers of a vision-language
model, the teacher. The answers are a model's words about an image: they were not checked by a
person, and sizes are estimates unless the instrument recorded the scale.

```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", split="train")
answers = [qa for qa in rows[0]["qa"] if qa["outcome"] == "ok"]
```

Every reply is here, whatever became of it. `outcome` is `ok`, `truncated`, `refused`, `filtered`,
`empty` or `error`; train on `ok`. `flags` marks answers worth a second look. `reasoning` is what
the teacher wrote before its answer.

## Counts

{_table("outcome", outcomes)}

{_table("category", summary.categories)}

| question group | ok | other outcomes |
|---|---|---|
{questions}

{_table("flag", summary.flags) if summary.flags else "No answer is flagged."}

## Provenance

- Teacher: `{configuration["teacher_model"]}`; the server named itself: {_list(summary.models)}.
- Request parameters (profile `{configuration["profile"]}`): {sampling}.
- Prompt version `{configuration["prompt_version"]}`, digest `{configuration["prompt_digest"]}`.
- Preparation of the images: {preparation}; re-encoded from pixels alone.
- Asked from {days[0]} to {days[1]}.
- Tokens of these answers: {summary.prompt_tokens:,} in, {summary.completion_tokens:,} out.
- Cost of all attempts: {cost}.

## Sources and licences

Each row states its `source` and `licence`. The terms of the teacher's provider may restrict what
models may be trained on its answers.

{_table("source", summary.sources)}

{_table("licence", summary.licences)}
"""
    return DatasetCard(content)


def _table(title: str, counts: Counter[str]) -> str:
    rows = "\n".join(f"| {name} | {count:,} |" for name, count in counts.most_common())
    return f"| {title} | count |\n|---|---|\n{rows}"


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"`{name}` ({count:,})" for name, count in counts.most_common()) or "nothing"


def push(dataset: Path, repo_id: str, *, public: bool = False) -> str:
    """Upload a dataset folder to the Hub, as a private repository unless told otherwise.

    Returns:
        The URL of the repository.

    Raises:
        PermissionError: the repository exists and is public, and `public` is False.
    """
    api = HfApi()
    url = private_repository(api, repo_id, "dataset", public)
    api.upload_folder(repo_id=url.repo_id, repo_type="dataset", folder_path=dataset)
    return str(url)
