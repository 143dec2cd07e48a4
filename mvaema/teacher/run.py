"""One run of the teacher: from checked arguments to answers in the journal."""

import asyncio
import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from mvaema.micrographs.sources import DatasetSource
from mvaema.teacher.accounts import Accounts, Tally
from mvaema.teacher.arguments import AskArguments
from mvaema.teacher.asking import Asker
from mvaema.teacher.batch import BatchAsker, BatchLimits
from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.journal import Journal, JournalError, Question, journal_name, journals
from mvaema.teacher.limits import Limits
from mvaema.teacher.money import Budget, Measured, Meter, dollars, load_price, spent
from mvaema.teacher.preparing import Preparation, Preparer, open_source
from mvaema.teacher.prompt import Prompt, Sampling, request_parameters
from mvaema.teacher.questions import Plan

# Why a run ended (`Tally.stopped`) when the user ended it.
INTERRUPTED = "Interrupted."


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        tally: what it did, and why it ended early.
        seconds: how long it took.
        outcomes: of all questions in the journal.
        in_batches: questions in open batches.
        spent: US dollars for all replies in the journal.
        problems: reason -> sources that could not be read.
        duplicates: sources with the pixels of an earlier one.
    """

    tally: Tally
    seconds: float
    outcomes: dict[str, int]
    in_batches: int
    spent: float
    problems: Counter[str]
    duplicates: int


class TeacherRun:
    """Everything that a run needs, checked before anything is written or sent.

    Args:
        args: what the user chose.
        clock, sleep: of the waits between live requests; see `Limits`.

    Raises:
        ValueError: an argument is not permitted; the message says which and what is.
        OSError: the images or a file of settings cannot be read.
        JournalError: the output folder is divided into other shards.
    """

    def __init__(
        self,
        args: AskArguments,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable] = asyncio.sleep,
    ):
        self.args, self.clock, self.sleep = args, clock, sleep
        self.prompt = Prompt.load(args.prompt)
        unknown = sorted(set(args.questions) - set(self.prompt.questions))
        if unknown:
            raise ValueError(
                f"--questions {' '.join(unknown)}: expected some of "
                f"{', '.join(self.prompt.questions)}."
            )
        self.question_ids = tuple(args.questions or self.prompt.questions)
        sampling = Sampling(args.temperature, args.top_p, args.max_tokens)
        self.parameters = request_parameters(args.profile, sampling)
        self.preparation = Preparation(args.max_side, args.image_format, args.crop_info_bar)
        self.price = load_price(args.teacher_model, args.prices)
        if args.max_cost is not None and self.price is None:
            raise ValueError(
                f"--max_cost needs the price of {args.teacher_model}. Add it to a copy of "
                "mvaema/teacher/prices.yaml and pass that with --prices."
            )
        self.source = open_source(args.images, args.split)
        self.folder = Path(args.output_dir)
        self.path = self.folder / journal_name(args.part, args.parts)
        for other in journals(self.folder):
            if int(other.stem.rpartition("-")[2]) != args.parts:
                raise JournalError(
                    f"{other} belongs to another division into shards than --shard {args.shard}. "
                    "Use another --output_dir."
                )

    @property
    def columns_left_out(self) -> list[str]:
        """Columns of a dataset that the answers' dataset will not have."""
        if not isinstance(self.source, DatasetSource):
            return []
        return self.source.left_out + ["qa"] * ("qa" in self.source.columns)

    @property
    def configuration(self) -> dict:
        """What makes answers comparable; see `Journal`."""
        return {
            "teacher_model": self.args.teacher_model,
            "profile": self.args.profile,
            "parameters": self.parameters,
            "max_tokens": self.args.max_tokens,
            "prompt_version": self.prompt.version,
            "prompt_digest": self.prompt.digest(),
            "prompt_parts": self.prompt.parts,
            "questions": self.prompt.questions,
            "preparation": asdict(self.preparation),
        }

    def plan(self, retry_until: int = 0) -> Plan:
        """What is asked; see `Plan`."""
        return Plan(
            model=self.args.teacher_model,
            parameters=self.parameters,
            prompt=self.prompt,
            question_ids=self.question_ids,
            retry=frozenset(self.args.retry),
            retry_until=retry_until,
        )

    def count_entries(self) -> int:
        """Entries of the source that this run goes through: all, or those of a pilot.

        Raises:
            ValueError: there are none.
        """
        total = len(self.source)
        if not total:
            raise ValueError(
                f"--images {self.args.images}: no file there has the name of a micrograph."
            )
        return total if self.args.pilot is None else min(total, self.args.pilot)

    def open(self, journal: Journal) -> tuple[Plan, Accounts]:
        """What is asked and what it costs, given what the journal holds."""
        args = self.args
        journal.judge_rest()
        plan = self.plan(journal.last_id())
        measured = Measured.of(journal)
        meter = Meter(self.price, args.max_tokens, args.batch, measured, plan.longest(journal))
        already = spent(journal, self.price, args.max_tokens) or 0.0
        return plan, Accounts(meter, Budget(args.max_cost, already))

    def ask(self) -> RunResult:
        """Ask what is missing. Everything that comes back is in the journal.

        Raises:
            EndpointError: the endpoint or the key cannot be used.
            JournalError, sqlite3.Error: the journal cannot be used or written.
        """
        args = self.args
        endpoint = Endpoint(args.endpoint, args.api_key_env, args.allow_external)
        entries = self.count_entries()
        with Journal(self.path, self.configuration) as journal:
            plan, accounts = self.open(journal)
            preparer = Preparer(journal, self.preparation, args.part, args.parts)

            def questions() -> Iterator[list[Question]]:
                whole = entries == len(self.source)
                images = preparer(itertools.islice(self.source, entries), whole)
                return plan(journal, images, preparer.is_intact)

            began = time.monotonic()
            with tqdm(
                total=entries * len(plan.question_ids), unit=" questions", smoothing=0.05
            ) as bar:
                on_progress = self._progress(bar, accounts)
                shared = (endpoint, journal, plan, accounts)
                if args.batch:
                    asker = BatchAsker(
                        *shared, self._batch_limits(), on_progress, give_up=args.give_up_batches
                    )
                    with _stopped_by_signals():
                        asker.run(questions)
                else:
                    asker = Asker(*shared, self._limits(), args.timeout, on_progress)
                    asyncio.run(interruptible(asker, questions()))
            return RunResult(
                accounts.tally,
                time.monotonic() - began,
                journal.counts(),
                journal.count_in_batches(),
                accounts.budget.spent,
                preparer.problems,
                preparer.duplicates,
            )

    def _limits(self) -> Limits:
        args = self.args
        return Limits(
            args.concurrency,
            args.requests_per_minute,
            args.tokens_per_minute,
            clock=self.clock,
            sleep=self.sleep,
        )

    def _batch_limits(self) -> BatchLimits:
        args = self.args
        max_bytes = int(args.batch_megabytes * 1e6)
        return BatchLimits(args.batch_requests, max_bytes, args.batch_poll, args.timeout)

    def _progress(self, bar: tqdm, accounts: Accounts) -> Callable[[int], None]:
        def on_progress(count: int):
            postfix = {name: n for name, n in accounts.tally.outcomes.items() if n}
            if self.price is not None:
                postfix = {"cost": dollars(accounts.budget.spent), **postfix}
            bar.set_postfix(postfix, refresh=False)
            bar.update(count)

        return on_progress


def _stopping_signals() -> list[signal.Signals]:
    """The signals that end a run in good order. One that this process was started to ignore
    (`nohup`) stays ignored."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let every signal that ends a run do so as Ctrl-C does: by a KeyboardInterrupt."""
    before = {number: signal.getsignal(number) for number in _stopping_signals()}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def interruptible(asker: Asker, questions: Iterator[list[Question]]):
    """Run the asker. The first Ctrl-C (or SIGTERM, or SIGHUP) finishes the requests in flight, the
    second does not wait for them."""
    loop = asyncio.get_running_loop()

    def interrupt():
        if asker.tally.stopped is not None:
            asker.abort()
            return
        asker.stop(INTERRUPTED)
        try:
            tqdm.write("Stopping: waiting for the requests in flight. Ctrl-C again: do not wait.")
        except OSError:  # the terminal is gone, and whatever is shown would fail from now on
            sys.stdout = sys.stderr = Path(os.devnull).open("w")

    numbers = _stopping_signals()
    for number in numbers:
        loop.add_signal_handler(number, interrupt)
    try:
        await asker.run(questions)
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
