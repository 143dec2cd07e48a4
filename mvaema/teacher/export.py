"""The journal to a micrograph dataset and, only when asked, to a hub.

What is special about it:
- it reads a snapshot, so it can run at any time while answers still arrive, and several exports of
  a folder take turns;
- replies are judged anew, whatever an earlier version made of them, and no single reply or image
  stops an export;
- rows are the images as the last run met them: an image that was removed, and an answer that was
  given under other labels, stay in the journal and out of the dataset, and are counted;
- every outcome is exported, with what is needed to choose: outcome, flags, reasoning apart from
  the answer, teacher model, prompt version. Training takes `ok`;
- the folder `dataset` is replaced only when the new one is complete on the disk.
"""

import fcntl
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from huggingface_hub import HfApi
from tqdm import tqdm

from mvaema.hub import private_repository
from mvaema.micrographs.shards import write_shards
from mvaema.teacher.card import Summary, dataset_card
from mvaema.teacher.flags import Flagger, is_loop
from mvaema.teacher.journal import (
    Journal,
    JournalError,
    PreparedImage,
    absent_images,
    differences,
    journals,
    rows_in_order,
)
from mvaema.teacher.languages import in_other_language
from mvaema.teacher.money import Price, spent
from mvaema.teacher.preparing import read_prepared
from mvaema.teacher.prompt import Prompt
from mvaema.teacher.questions import Plan
from mvaema.teacher.replies import Verdict, judge

UNKNOWN = "unknown"
# Damaged images that are named; the others are counted.
NAMED_IMAGES = 20

# Begins a new pass over the images and all their replies.
Answered = Callable[[], Iterator[tuple[PreparedImage, list]]]


def export(folder: Path, price: Price | None = None) -> tuple[Path, Summary]:
    """Write `folder/dataset` from all journals in `folder`.

    Args:
        folder: an output folder of the teacher.
        price: of the model, for the card.

    Returns:
        the dataset's folder and what it holds.

    Raises:
        JournalError: there is no journal, no row to write, or journals of different
            configurations.
        OSError: the disk is full or read-only. An earlier dataset stays.
    """
    with _one_at_a_time(folder), ExitStack() as stack:
        opened, configuration = _open(folder, stack)
        snapshots = [journal.snapshot() for journal in opened]
        for snapshot in snapshots:
            stack.callback(snapshot.close)
        absent = [absent_images(snapshot) for snapshot in snapshots]

        def answered() -> Iterator[tuple[PreparedImage, list]]:
            for snapshot, gone in zip(snapshots, absent, strict=True):
                for image, replies in rows_in_order(snapshot):
                    if image.image_id not in gone:
                        yield image, replies

        partial = folder / "dataset.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            rows = Rows(folder, configuration, answered)
            rows.summary.absent = sum(map(len, absent))
            write_shards(iter(rows), partial)
            summary = rows.summary
            if not summary.images:
                waiting = sum(journal.count_in_batches() for journal in opened)
                raise JournalError(
                    f"{folder}: nothing to export. {waiting:,} questions are in open batches, "
                    f"which --batch collects. {summary}"
                )
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


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process exports this folder."""
    if not journals(folder):
        raise JournalError(f"{folder} holds no journal of the teacher. Check --output_dir.")
    with (folder / "dataset.lock").open("w") as lock:  # held until the file is closed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"{folder}: waiting for another export of this folder.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open(folder: Path, stack: ExitStack) -> tuple[list[Journal], dict]:
    """The journals of a folder, open until the stack closes, and their configuration."""
    paths = journals(folder)
    opened = [stack.enter_context(Journal(path, read_only=True)) for path in paths]
    for path, journal in zip(paths, opened, strict=True):
        if journal.configuration is None:
            raise JournalError(f"{path} is not a journal of the teacher. Check --output_dir.")
        if differences(opened[0].configuration, journal.configuration):
            raise JournalError(
                f"{path.name} and {paths[0].name} have different configurations. Keep them in "
                "different folders."
            )
        if journal.has_unjudged():  # what a killed run left; one that is running does it itself
            with suppress(JournalError), Journal(path) as writable:
                writable.judge_rest()
    return opened, opened[0].configuration


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
        self._plan = None  # of an earlier version, which did not keep the wording of the prompt
        questions = configuration["questions"]
        if "prompt_parts" in configuration:
            self._plan = Plan(
                model=configuration["teacher_model"],
                parameters=configuration["parameters"],
                prompt=Prompt(
                    configuration["prompt_version"], configuration["prompt_parts"], questions
                ),
                question_ids=tuple(questions),
            )

    def __iter__(self) -> Iterator[dict]:
        for image, replies in self.answered():
            for question_id, verdict in self._counting(image, replies)[0]:
                if verdict.outcome == "ok":
                    self._flagger.add(question_id, verdict.answer)
        self._flagger.finish()
        for image, replies in self.answered():
            verdicts, outdated = self._counting(image, replies)
            answers = [self._answer(*pair) for pair in verdicts]
            self.summary.outdated += outdated
            data = read_prepared(self.folder, image) if answers else None
            if data is not None:
                self._count(image, verdicts, answers)
                yield self._row(image, data, answers)
            elif answers:
                self._damaged(image)

    def _counting(
        self, image: PreparedImage, replies: list
    ) -> tuple[list[tuple[str, Verdict]], int]:
        """The verdict that counts for each question: the last `ok`, else the last settled one,
        else the last. Also the number of questions that were answered under other labels."""
        ranked: dict[str, dict] = {name: {} for name in self.configuration["questions"]}
        outdated = set()
        for row in replies:
            name, verdict = row["question_id"], judge(row["status"], row["raw"], row["problem"])
            if name not in ranked:
                continue
            if self._plan is None or row["fingerprint"] == self._plan.fingerprint(image, name):
                settled = bool(row["settled"] or verdict.settled)
                ranked[name][verdict.outcome == "ok", settled, row["attempt"]] = verdict
            elif verdict.is_completion:
                outdated.add(name)
        best = [(name, found[max(found)]) for name, found in ranked.items() if found]
        return best, len(outdated)

    def _row(self, image: PreparedImage, data: bytes, answers: list[dict]) -> dict:
        return {
            "image": {"bytes": data},
            "image_id": image.image_id,
            "category": image.category,
            "caption": image.caption,
            "pixel_size_nm": image.pixel_size_nm,
            "scale_bar": image.scale_bar,
            "group": image.group,
            "qa": answers,
            "source": image.source,
            "licence": image.licence,
        }

    def _answer(self, question_id: str, verdict: Verdict) -> dict:
        question = self.configuration["questions"][question_id]
        flags = self._flagger.next(question_id) if verdict.outcome == "ok" else []
        if verdict.answer is not None:
            flags += ["repetition"] if is_loop(verdict.answer) else []
            flags += [] if verdict.marked else ["unmarked"]
            flags += ["other_language"] if in_other_language(question, verdict.answer) else []
        return {
            "question_id": question_id,
            "question": question,
            "answer": verdict.answer,
            "outcome": verdict.outcome,
            "reasoning": verdict.reasoning,
            "flags": flags,
            "teacher_model": verdict.returned_model or self.configuration["teacher_model"],
            "prompt_version": self.configuration["prompt_version"],
        }

    def _count(self, image: PreparedImage, verdicts: list[tuple[str, Verdict]], answers: list):
        summary = self.summary
        summary.images += 1
        summary.categories[image.category or UNKNOWN] += 1
        summary.licences[image.licence or UNKNOWN] += 1
        summary.sources[image.source or UNKNOWN] += 1
        for (question_id, verdict), answer in zip(verdicts, answers, strict=True):
            summary.outcomes[verdict.outcome] += 1
            summary.by_question.setdefault(question_id, Counter())[verdict.outcome] += 1
            summary.flags.update(answer["flags"])
            summary.prompt_tokens += verdict.prompt_tokens or 0
            summary.completion_tokens += verdict.completion_tokens or 0
            if verdict.returned_model:
                summary.models[verdict.returned_model] += 1

    def _damaged(self, image: PreparedImage):
        self.summary.damaged += 1
        if self.summary.damaged <= NAMED_IMAGES:
            tqdm.write(f"{self.folder / image.file}: missing or damaged, its row is left out.")


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
