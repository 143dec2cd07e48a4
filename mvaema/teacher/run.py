"""One run of the teacher, from arguments to a dataset: what `generate_teacher_data.py` calls."""

import asyncio
import itertools
import re
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from mvaema.micrographs.build import ReadMicrograph
from mvaema.micrographs.schema import OUTCOMES
from mvaema.micrographs.sources import DatasetSource, Problem
from mvaema.teacher.arguments import AskArguments
from mvaema.teacher.asking import Asker, Progress, read
from mvaema.teacher.batch import BatchAsker
from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.export import export, push
from mvaema.teacher.journal import Journal, JournalError, PreparedImage, journal_name, journals
from mvaema.teacher.limits import Limits
from mvaema.teacher.money import Budget, Measured, Meter, Price, dollars, load_price, spent
from mvaema.teacher.preparing import Preparation, Preparer, open_source
from mvaema.teacher.prompt import Prompt, Sampling, request_parameters
from mvaema.teacher.questions import Plan

# Images that a dry run prepares (in memory) to estimate the size of requests.
DRY_RUN_IMAGES = 20
INTERRUPTED = "interrupted"


class Run:
    """Everything a run needs, checked before anything is written or sent."""

    def __init__(self, args: AskArguments):
        self.args = args
        self.prompt = Prompt.load(args.prompt)
        unknown = sorted(set(args.questions) - set(self.prompt.questions))
        if unknown:
            raise ValueError(
                f"--questions {' '.join(unknown)}: expected some of "
                f"{', '.join(self.prompt.questions)}."
            )
        sampling = Sampling(args.temperature, args.top_p, args.max_tokens)
        self.parameters = request_parameters(args.profile, sampling)
        self.preparation = Preparation(args.max_side, args.image_format, args.crop_info_bar)
        self.price = load_price(args.teacher_model, args.prices)
        if args.max_cost is not None and self.price is None:
            raise ValueError(
                f"--max-cost needs the price of {args.teacher_model}: add it to a copy of "
                "mvaema/teacher/prices.yaml and pass that with --prices."
            )
        self.source = open_source(args.images, args.split)
        if isinstance(self.source, DatasetSource):
            left_out = self.source.left_out + ["qa"] * ("qa" in self.source.columns)
            if left_out:
                print(f"{args.images}: columns not carried over: {', '.join(left_out)}.")
        self.folder = Path(args.output)
        self.path = self.folder / journal_name(args.part, args.parts)
        for other in journals(self.folder):
            if int(other.stem.rpartition("-")[2]) != args.parts:
                raise JournalError(
                    f"{other} is a part of another division into shards than --shard "
                    f"{args.shard}; use another --output."
                )

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
            "questions": self.prompt.questions,
            "preparation": asdict(self.preparation),
        }

    def plan(self, retry_until: int = 0) -> Plan:
        return Plan(
            model=self.args.teacher_model,
            parameters=self.parameters,
            prompt=self.prompt,
            question_ids=tuple(self.args.questions or self.prompt.questions),
            retry=frozenset(self.args.retry),
            retry_until=retry_until,
        )

    # --- estimating

    def estimate(self) -> str:
        """Requests, tokens and cost of what is missing. Sends and writes nothing."""
        counts, measured = {}, Measured()
        if self.path.exists():
            with Journal(self.path, self.configuration, read_only=True) as journal:
                counts, measured = journal.counts(), Measured.of(journal)
        total = self._count()
        meter = Meter(self.price, self.args.max_tokens, self.args.batch, measured)
        expected, worst, images = [0.0] * 3, [0.0] * 3, 0
        plan = self.plan()
        for entry in itertools.islice(self.source, DRY_RUN_IMAGES):
            reading = None if isinstance(entry, Problem) else self.preparation.read(entry)
            if not isinstance(reading, ReadMicrograph):
                continue
            _, (width, height) = self.preparation.encode(reading.png)
            fields = {k: entry.fields.get(k) for k in ("category", "caption", "scale_bar")}
            image = PreparedImage(
                reading.image_id, "", "", width, height, pixel_size_nm=reading.pixel_size_nm,
                **fields,
            )  # fmt: skip
            images += 1
            for question_id in plan.question_ids:
                text = plan.text(image, question_id)
                for sums, tokens in (
                    (expected, meter.expected_tokens(text, (width, height))),
                    (worst, meter.worst_tokens(text, (width, height))),
                ):
                    for i, count in enumerate(tokens):
                        sums[i] += count
        if not images:
            raise ValueError(f"--images {self.args.images}: none of the first images is readable.")
        asked = sum(counts.values())
        requests = max(0, round(total * len(plan.question_ids)) - asked)
        share = 1 / (images * len(plan.question_ids))
        basis = f"measured on {measured.replies:,} replies" if measured.replies else "assumed"
        lines = [
            "What is missing, estimated:",
            f"  micrographs   {'about ' if self.args.parts > 1 else ''}{total:,.0f}",
            f"  requests      {requests:,} ({asked:,} questions have a reply already)",
            f"  tokens of one {expected[0] * share:,.0f} in, {expected[2] * share:,.0f} out "
            f"({basis}); at most {worst[0] * share:,.0f} in, {worst[2] * share:,.0f} out",
        ]
        for title, sums in (("expected", expected), ("worst case", worst)):
            tokens = [count * share * requests for count in sums]
            lines.append(
                f"  {title:<13} {tokens[0]:,.0f} tokens in, {tokens[2]:,.0f} out, cost "
                f"{dollars(meter.cost(*tokens))}"
            )
        lines.append(self._price_note())
        if not measured.replies:
            lines.append("  --pilot 20 asks about 20 images and replaces assumptions by figures.")
        return "\n".join(lines)

    def _price_note(self) -> str:
        if self.price is None:
            return (
                f"  The price of {self.args.teacher_model} is unknown; add it to a copy of "
                "mvaema/teacher/prices.yaml (--prices)."
            )
        discount = f", times {self.price.batch} in batches" if self.args.batch else ""
        return (
            f"  Prices of {self.price.as_of} ({self.price.source}): ${self.price.input} in, "
            f"${self.price.output} out per million tokens{discount}."
        )

    def _count(self) -> float:
        """Images of this part: all, or their share."""
        total = len(self.source)
        if not total:
            raise ValueError(
                f"--images {self.args.images}: there is no micrograph (file names tell)."
            )
        return total / self.args.parts

    # --- asking

    def ask(self) -> Progress:
        """Ask what is missing; everything that comes back is in the journal."""
        args = self.args
        endpoint = Endpoint(args.endpoint, args.api_key_env, args.allow_external)
        total = len(self.source) if self._count() else 0
        entries = total if args.pilot is None else min(total, args.pilot)
        with Journal(self.path, self.configuration) as journal:
            journal.read_unread(read)
            plan = self.plan(journal.last_id())
            meter = Meter(self.price, args.max_tokens, args.batch, Measured.of(journal))
            budget = Budget(args.max_cost, spent(journal, self.price, args.max_tokens) or 0.0)
            preparer = Preparer(journal, self.preparation, args.part, args.parts)
            bar = tqdm(total=entries * len(plan.question_ids), unit=" questions", smoothing=0.05)

            def questions():
                return plan(journal, preparer(itertools.islice(self.source, entries)))

            def on_progress(count: int):
                postfix = {name: n for name, n in asker.progress.outcomes.items() if n}
                if self.price is not None:
                    postfix = {"cost": dollars(budget.spent), **postfix}
                bar.set_postfix(postfix, refresh=False)
                bar.update(count)

            began = time.monotonic()
            with bar:
                if args.batch:
                    asker = BatchAsker(
                        endpoint,
                        journal,
                        plan,
                        meter,
                        budget,
                        poll=args.batch_poll,
                        max_requests=args.batch_requests,
                        max_bytes=int(args.batch_megabytes * 1e6),
                        timeout=args.timeout,
                        on_progress=on_progress,
                    )
                    progress = asker.run(questions)
                else:
                    limits = Limits(
                        args.concurrency, args.requests_per_minute, args.tokens_per_minute
                    )
                    asker = Asker(
                        endpoint,
                        journal,
                        plan,
                        limits,
                        meter,
                        budget,
                        timeout=args.timeout,
                        on_progress=on_progress,
                    )
                    progress = asyncio.run(_interruptible(asker, questions()))
            self._report(journal, progress, preparer, budget, time.monotonic() - began)
        return progress

    def _report(self, journal, progress, preparer, budget, seconds: float):
        args = self.args
        counts = journal.counts()
        print(
            f"{progress.replies:,} questions answered in {seconds:,.0f} s; in the journal: "
            + (", ".join(f"{counts[name]:,} {name}" for name in OUTCOMES if name in counts) or "-")
        )
        if self.price is not None:
            print(f"Spent so far: {dollars(budget.spent)} (prices of {self.price.as_of}).")
        if preparer.problems:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in preparer.problems.most_common())
            print(f"Not read: {reasons}. Repair them and rerun: the rest is not asked again.")
        if preparer.duplicates:
            print(f"{preparer.duplicates:,} files have the pixels of an earlier one: asked once.")
        same = re.compile(re.escape(args.teacher_model) + r"([-@:](main|latest|\d[\d-]*))?")
        others = [name for name in progress.models if not same.fullmatch(name)]
        if others:
            print(
                f"Note: {args.teacher_model} was asked, but the server says that "
                f"{', '.join(others)} answered; the dataset records what it says."
            )
        waiting = journal.query("SELECT count(*) FROM batch_questions")[0][0]
        if waiting:
            print(f"{waiting:,} questions are in open batches; rerun with --batch to collect them.")
        if args.pilot is not None and progress.replies:
            scale = self._count() * len(self.plan().question_ids)
            days = seconds / progress.replies * scale / 86400
            print(f"All micrographs at this pace: {days:.2f} days.\n{self.estimate()}")
        failed = counts.get("error", 0)
        if failed:
            last = f" (the last: {progress.last_error})" if progress.last_error else ""
            print(f"{failed:,} questions ended in an error{last}; --retry error asks them again.")


async def _interruptible(asker: Asker, questions) -> Progress:
    """Run the asker; the first Ctrl-C (or SIGTERM) finishes what is in flight, the second does
    not wait for it."""
    loop = asyncio.get_running_loop()

    def interrupt():
        if asker.progress.stopped is None:
            tqdm.write("Stopping: waiting for the replies in flight (Ctrl-C again: do not wait).")
            asker.stop(INTERRUPTED)
        else:
            asker.abort()

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, interrupt)
    try:
        return await asker.run(questions)
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)


def run(args: AskArguments) -> int:
    """The command without a subcommand. Returns its exit status."""
    this = Run(args)
    if args.dry_run:
        print(f"{this.estimate()}\nNothing was sent.")
        return 0
    progress = this.ask()
    if progress.stopped == INTERRUPTED:
        print("Interrupted. Nothing that came back is lost: the same command goes on.")
        return 130  # the shell's convention
    if progress.stopped is not None:
        print(
            f"Stopped: {progress.stopped}. Nothing that came back is lost: the same command "
            "goes on.",
            file=sys.stderr,
        )
    if args.export:
        write_dataset(this.folder, this.price, args.push_to_hub, args.public)
    return 0 if progress.stopped is None else 1


def write_dataset(folder: Path, price: Price | None, push_to_hub: str | None, public: bool):
    """Export a folder, and upload it where asked.

    Raises:
        JournalError, OSError: see `export`.
    """
    dataset, summary = export(folder, price)
    print(f"{dataset}: {summary}")
    if push_to_hub:
        print(push(dataset, push_to_hub, public=public))
