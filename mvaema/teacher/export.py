"""The journal to a micrograph dataset and, only when asked, to a hub.

What is special about it:
- it reads a snapshot, so it can run at any time while answers still arrive;
- every outcome is exported, with what is needed to choose: outcome, flags, reasoning apart from
  the answer, teacher model, prompt version. Training takes `ok`;
- the folder `dataset` is replaced only when the new one is complete on the disk.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from huggingface_hub import HfApi

from mvaema.hub import private_repository
from mvaema.micrographs.shards import write_shards
from mvaema.teacher.card import Summary, dataset_card
from mvaema.teacher.flags import Flagger, is_loop
from mvaema.teacher.journal import Journal, JournalError, PreparedImage, journals, rows_in_order
from mvaema.teacher.money import Price, spent
from mvaema.teacher.replies import Verdict, judge

UNKNOWN = "unknown"

# Begins a new pass over the images and the replies that count for them.
Answered = Callable[[], Iterator[tuple[PreparedImage, list]]]


def export(folder: Path, price: Price | None = None) -> tuple[Path, Summary]:
    """Write `folder/dataset` from all journals in `folder`.

    Args:
        folder: an output folder of the teacher.
        price: of the model, for the card.

    Returns:
        the dataset's folder and what it holds.

    Raises:
        JournalError: there is no journal, no reply in it, or journals of different
            configurations.
        OSError: an image is missing, or the disk is full or read-only. An earlier dataset stays.
    """
    for path in journals(folder):
        # What a killed run did not come to judge. One that is running does so itself.
        with suppress(JournalError), Journal(path) as journal:
            journal.judge_rest()
    partial = folder / "dataset.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with ExitStack() as stack:
        opened, configuration = _open(folder, stack)
        snapshots = [journal.snapshot() for journal in opened]
        for snapshot in snapshots:
            stack.callback(snapshot.close)

        def answered() -> Iterator[tuple[PreparedImage, list]]:
            for snapshot in snapshots:
                yield from rows_in_order(snapshot)

        try:
            rows = Rows(folder, configuration, answered)
            write_shards(iter(rows), partial)
            summary = rows.summary
            if not summary.images:
                raise JournalError(f"{folder}: the journal has no replies yet, nothing to export.")
            costs = [spent(j, price, configuration["max_tokens"]) for j in opened]
            summary.cost = None if None in costs else sum(costs)
            when = [
                journal.query("SELECT min(asked_at), max(asked_at) FROM replies")[0]
                for journal in opened
            ]
            dataset_card(summary, configuration, price, when).save(partial / "README.md")
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return _replace(folder / "dataset", partial), summary


def _open(folder: Path, stack: ExitStack) -> tuple[list[Journal], dict]:
    """The journals of a folder, open until the stack closes, and their configuration."""
    paths = journals(folder)
    opened = [stack.enter_context(Journal(path, read_only=True)) for path in paths]
    configurations = [journal.configuration for journal in opened]
    if not opened or configurations[0] is None:
        raise JournalError(f"{folder} holds no journal of the teacher. Check --output_dir.")
    for path, other in zip(paths, configurations, strict=True):
        if other != configurations[0]:
            raise JournalError(
                f"{path.name} and {paths[0].name} have different configurations. Keep them in "
                "different folders."
            )
    return opened, configurations[0]


def _replace(target: Path, new: Path) -> Path:
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


class Rows:
    """The rows of the dataset, one at a time; `summary` counts them on the way.

    Args:
        folder: an output folder of the teacher.
        configuration: of its journals.
        answered: begins a new pass over the images and their replies.
    """

    def __init__(self, folder: Path, configuration: dict, answered: Answered):
        self.folder, self.configuration, self.answered = folder, configuration, answered
        self.summary = Summary()
        self._flagger = Flagger()

    def __iter__(self) -> Iterator[dict]:
        for _, replies in self.answered():
            for row in replies:
                if row["outcome"] == "ok":
                    self._flagger.add(row["question_id"], _judge(row).answer)
        self._flagger.finish()
        for image, replies in self.answered():
            if replies:
                yield self._row(image, replies)

    def _row(self, image: PreparedImage, replies: list) -> dict:
        order = {name: i for i, name in enumerate(self.configuration["questions"])}
        replies.sort(key=lambda row: order.get(row["question_id"], len(order)))
        self.summary.images += 1
        self.summary.categories[image.category or UNKNOWN] += 1
        self.summary.licences[image.licence or UNKNOWN] += 1
        self.summary.sources[image.source or UNKNOWN] += 1
        return {
            "image": {"bytes": (self.folder / image.file).read_bytes()},
            "image_id": image.image_id,
            "category": image.category,
            "caption": image.caption,
            "pixel_size_nm": image.pixel_size_nm,
            "scale_bar": image.scale_bar,
            "group": image.group,
            "qa": [self._answer(row) for row in replies],
            "source": image.source,
            "licence": image.licence,
        }

    def _answer(self, row) -> dict:
        verdict, question_id = _judge(row), row["question_id"]
        flags = self._flagger.next(question_id) if verdict.outcome == "ok" else []
        if verdict.answer is not None:
            flags += ["repetition"] if is_loop(verdict.answer) else []
            flags += [] if verdict.marked else ["unmarked"]
        self._count(question_id, verdict, flags)
        return {
            "question_id": question_id,
            "question": self.configuration["questions"][question_id],
            "answer": verdict.answer,
            "outcome": verdict.outcome,
            "reasoning": verdict.reasoning,
            "flags": flags,
            "teacher_model": verdict.returned_model or self.configuration["teacher_model"],
            "prompt_version": self.configuration["prompt_version"],
        }

    def _count(self, question_id: str, verdict: Verdict, flags: list[str]):
        summary = self.summary
        summary.outcomes[verdict.outcome] += 1
        summary.by_question.setdefault(question_id, Counter())[verdict.outcome] += 1
        summary.flags.update(flags)
        summary.prompt_tokens += verdict.prompt_tokens or 0
        summary.completion_tokens += verdict.completion_tokens or 0
        if verdict.returned_model:
            summary.models[verdict.returned_model] += 1


def _judge(row) -> Verdict:
    return judge(row["status"], row["raw"], row["problem"])


def push(dataset: Path, repo_id: str, *, public: bool = False) -> str:
    """Upload a dataset folder to the Hub, to a private repository unless `public`.

    Args:
        dataset: what `export` wrote.
        repo_id: "owner/name"; created unless it is there.
        public: whether everybody may see the repository.

    Returns:
        the address of the repository.

    Raises:
        PermissionError: the repository exists and is public, but `public` is False.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused the upload.
    """
    api = HfApi()
    url = private_repository(api, repo_id, "dataset", public)
    api.upload_folder(repo_id=url.repo_id, repo_type="dataset", folder_path=dataset)
    return str(url)
