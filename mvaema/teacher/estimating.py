"""What the missing answers will cost: requests, tokens and dollars, before any is sent."""

import itertools
from collections.abc import Iterator

import numpy as np

from mvaema.micrographs.sources import Problem
from mvaema.teacher.journal import Journal, PreparedImage
from mvaema.teacher.money import Measured, Meter, dollars
from mvaema.teacher.preparing import Preparation
from mvaema.teacher.run import TeacherRun

# Images that are prepared, in memory, to estimate the size of requests.
SAMPLE_IMAGES = 20


def estimate(run: TeacherRun) -> str:
    """Requests, tokens and cost of what is missing, as lines of text. Sends and writes nothing.

    Raises:
        ValueError: there are no images, or none of the first can be read.
        JournalError: the journal belongs to another configuration.
    """
    args = run.args
    counts, measured = {}, Measured()
    if run.path.exists():
        with Journal(run.path, run.configuration, read_only=True) as journal:
            counts, measured = journal.counts(), Measured.of(journal)
    images = run.count_images()
    meter = Meter(run.price, args.max_tokens, args.batch, measured)
    expected, worst = _tokens_per_request(run, meter)
    answered = sum(counts.values())
    requests = max(0, round(images * len(run.question_ids)) - answered)
    basis = f"measured on {measured.replies:,} replies" if measured.replies else "assumed"
    lines = [
        "Still to be asked, estimated:",
        f"  micrographs   {'about ' if args.parts > 1 else ''}{images:,.0f}",
        f"  requests      {requests:,} ({answered:,} questions have a reply already)",
        f"  per request   {expected[0]:,.0f} tokens in, {expected[2]:,.0f} out ({basis}); at most "
        f"{worst[0]:,.0f} in, {worst[2]:,.0f} out",
    ]
    for title, tokens in (("expected", expected * requests), ("worst case", worst * requests)):
        lines.append(
            f"  {title:<13} {tokens[0]:,.0f} tokens in, {tokens[2]:,.0f} out, cost "
            f"{dollars(meter.cost(*tokens))}"
        )
    lines.append(_price_note(run))
    if not measured.replies:
        lines.append("  --pilot 20 asks about 20 images and replaces assumptions by measurements.")
    return "\n".join(lines)


def _tokens_per_request(run: TeacherRun, meter: Meter) -> tuple[np.ndarray, np.ndarray]:
    """Mean (prompt, cached, completion) tokens of the first images' requests, typical and worst."""
    plan = run.plan()
    requests = [
        (plan.text(image, question_id), (image.width, image.height))
        for image in _first_images(run.source, run.preparation)
        for question_id in plan.question_ids
    ]
    if not requests:
        raise ValueError(f"--images {run.args.images}: none of the first images can be read.")
    expected = np.mean([meter.expected_tokens(*request) for request in requests], axis=0)
    worst = np.mean([meter.worst_tokens(*request) for request in requests], axis=0)
    return expected, worst


def _first_images(source, preparation: Preparation) -> Iterator[PreparedImage]:
    for entry in itertools.islice(source, SAMPLE_IMAGES):
        read = None if isinstance(entry, Problem) else preparation.read(entry)
        if read is None or isinstance(read, tuple):  # unreadable
            continue
        _, (width, height) = preparation.encode(read.png)
        labels = {name: entry.fields.get(name) for name in ("category", "caption", "scale_bar")}
        yield PreparedImage(
            read.image_id, "", "", width, height, pixel_size_nm=read.pixel_size_nm, **labels
        )


def _price_note(run: TeacherRun) -> str:
    price = run.price
    if price is None:
        return (
            f"  The price of {run.args.teacher_model} is unknown. Add it to a copy of "
            "mvaema/teacher/prices.yaml and pass that with --prices."
        )
    discount = f", times {price.batch} in batches" if run.args.batch else ""
    return (
        f"  Prices of {price.as_of} ({price.source}): ${price.input} in, ${price.output} out per "
        f"million tokens{discount}."
    )
