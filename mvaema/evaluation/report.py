"""Step 3, report: one folder that a lab can read, keep and pass on.

    index.html               everything on one page: the verdict, six micrographs, pictures and
                             tables behind a click, then each micrograph, question and answer, worst
                             first, and where its words look; self-contained, it loads nothing from
                             any network
    tables.md                the verdict and the figures as tables, among them the paper's Tables 1,
                             4 and 7
    questions.png, image_gain.png, confusion_matrix_*.png, reliability_*.png, losses.png
    micrographs/*.jpg        those of Table 7
    results.json             every figure (`mvaema/evaluation/scores.py`); written last

The page and the pictures contain micrographs: the folder is as confidential as they are.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mvaema.evaluation import figures
from mvaema.evaluation.questions import Record, key_of
from mvaema.evaluation.scores import CHANCE
from mvaema.evaluation.sight_tables import FALSE_CLAIMS
from mvaema.evaluation.table import markdown
from mvaema.evaluation.tables import examples_table, result_tables, student_of
from mvaema.evaluation.verdict import sentence, text_metric, verdict_table
from mvaema.files import write_bytes, write_json, write_text
from mvaema.training.curves import loss_curves

MICROGRAPH_SIDE = 384  # longest side of a micrograph in the report, in pixels
DPI = 144
MAP_COLOUR = (255, 96, 0)
MAP_OPACITY = 0.75  # where an answer looks most
EXAMPLES = 10  # rows of Table 7
EXAMPLE_QUESTION = "morphology"  # the one of Table 7
SHOWN_FIRST = 2  # micrographs at each end and in the middle, right below the verdict


def write_report(
    results: Mapping,
    answers: Mapping[str, list[Record]],
    images: Mapping[str, Image.Image],
    folder: str | Path,
    log: Sequence[Mapping] = (),
    attention: Mapping[tuple[str, str], Sequence[Sequence[int]]] | None = None,
    max_answers: int = 2000,
) -> Path:
    """Write the report and return the path of its page. Existing files are replaced.

    Args:
        results: the figures, as `mvaema/evaluation/scores.py` describes them.
        answers: name to scored records, the student first. The page shows them side by side; each
            name must be in `results["answers"]`.
        images: image id to micrograph; may load each on demand.
        log: records of the training log, for the loss curves.
        attention: where each of the student's answers looks, by its record's key: rows of numbers
            from 0 to 255.
        max_answers: the page shows at most this many answers, the worst ones.

    Raises:
        ValueError: there are no answers, a name has no figures, a figure is not finite, or a
            micrograph is missing.
    """
    _check(results, answers, images)
    pictures = {name: _png(figure) for name, figure in _pictures(results, log).items()}
    metric = text_metric(results)  # that answers are sorted by
    worst_first = sorted(answers[student_of(results)], key=lambda r: r["scores"][metric])
    examples = _examples(worst_first)
    first = best_median_worst(answers[student_of(results)], metric)
    tables = result_tables(results)
    table_7 = examples_table(student_of(results), examples)

    folder = Path(folder)
    (folder / "micrographs").mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        write_bytes(folder / f"{name}.png", png)
    for record in examples:
        jpeg, _ = _jpeg(images[record["image_id"]], quality=85)
        write_bytes(folder / "micrographs" / f"{record['image_id']}.jpg", jpeg)
    all_tables = [verdict_table(results["verdict"]), *tables, table_7]
    write_text(folder / "tables.md", "\n".join(map(markdown, all_tables)))
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            facts={name: v for name, v in results.items() if isinstance(v, str | int | float)},
            verdict=results["verdict"],
            first=first,
            tables=tables,
            pictures={name: _embedded_png(png) for name, png in pictures.items()},
            metrics=results["metrics"],
            metric=metric,
            orders=_orders(answers[student_of(results)], results["metrics"]),
            **_answers_on_page(worst_first[:max_answers], first, answers, images),
            maps=_maps(worst_first[:max_answers], attention or {}),
        )
    )
    write_text(folder / "index.html", page)
    write_json(folder / "results.json", dict(results))
    return folder / "index.html"


def best_median_worst(records: list[Record], metric: str) -> list[tuple[str, Record]]:
    """Six micrographs, two each of the best, the median and the worst, with an answer about each.

    Nobody picks them: micrographs are ranked by the mean score of all answers about them, and of
    each the answer is shown whose score is nearest to that mean. Where there are fewer than six,
    all are shown.

    Args:
        records: scored records; the order of equal ones decides between them.
        metric: the score that ranks.

    Returns:
        which of the three it is, and the record; best first.
    """
    of_image: dict[str, list[Record]] = {}
    for record in records:
        of_image.setdefault(record["image_id"], []).append(record)
    means = {i: np.mean([r["scores"][metric] for r in rs]) for i, rs in of_image.items()}
    best_first = sorted(means, key=means.__getitem__, reverse=True)
    n, k = len(best_first), SHOWN_FIRST
    middle = max((n - k) // 2, 0)
    places = {
        **dict.fromkeys(range(middle, min(middle + k, n)), "median"),
        **{n - 1 - i: "worst" for i in range(min(k, n))},
        **dict.fromkeys(range(min(k, n)), "best"),
    }
    return [
        (
            places[i],
            min(of_image[image_id], key=lambda r: abs(r["scores"][metric] - means[r["image_id"]])),
        )
        for i, image_id in enumerate(best_first)
        if i in places
    ]


def _answers_on_page(
    shown: list[Record],
    first: list[tuple[str, Record]],
    answers: Mapping[str, list[Record]],
    images: Mapping[str, Image.Image],
) -> dict:
    """What the page's template needs for the answers that it shows."""
    student, *others = answers
    on_page = [*(record for _, record in first), *shown]
    image_ids = list(dict.fromkeys(r["image_id"] for r in on_page))
    return {
        "student": student,
        "records": shown,
        "total": len(answers[student]),
        "others": {name: {key_of(r): r for r in answers[name]} for name in others},
        "image_numbers": {image_id: i for i, image_id in enumerate(image_ids)},
        "micrographs": [_embedded_micrograph(images[image_id]) for image_id in image_ids],
        "questions": list(dict.fromkeys(r["question_id"] for r in answers[student])),
        "categories": sorted({r.get("category") or "unknown" for r in shown}),
    }


def _orders(records: list[Record], metrics: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """What answers can be sorted by: name, label, and 1 if higher is better, else -1."""
    orders = [(name, label, 1) for name, label in metrics.items()]
    if FALSE_CLAIMS in records[0]["scores"]:
        orders.append((FALSE_CLAIMS, "false claims", -1))
    if "sight" in records[0]:
        orders += [(name, name.replace("_", " "), 1) for name in records[0]["sight"]]
    return orders


def _maps(
    records: list[Record], attention: Mapping[tuple[str, str], Sequence[Sequence[int]]]
) -> dict[tuple[str, str], str]:
    """Attention maps as pictures to lay over the micrograph, the opaquer the more attention."""
    found = {}
    for key in filter(attention.__contains__, map(key_of, records)):
        weights = np.array(attention[key], dtype=np.uint8)
        picture = Image.new("RGB", weights.shape[::-1], MAP_COLOUR)
        picture.putalpha(Image.fromarray((weights * MAP_OPACITY).astype(np.uint8)))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        found[key] = _data_uri(buffer.getvalue(), "png")
    return found


def _examples(worst_first: list[Record]) -> list[Record]:
    """Answers to the question of the paper's Table 7, evenly spaced from best to worst."""
    best_first = worst_first[::-1]
    asked = [r for r in best_first if r["question_id"] == EXAMPLE_QUESTION] or best_first
    count = min(EXAMPLES, len(asked))
    steps = max(count - 1, 1)
    return [asked[round(i * (len(asked) - 1) / steps)] for i in range(count)]


def _pictures(results: Mapping, log: Sequence[Mapping]) -> dict[str, Figure]:
    metric = text_metric(results)
    label = results["metrics"][metric]
    pictures = {"questions": figures.question_bars(results["answers"], metric, label)}
    gain = "image_gain_per_token"
    if any(summary["overall"]["scores"][gain]["n"] for summary in results["sight"].values()):
        label = "Image gain, nats per token"
        pictures["image_gain"] = figures.question_bars(results["sight"], gain, label)
    for quality, scores in results["support"].items():
        name = "reliability_support" + re.sub(r"\W+", "_", f" {quality}".lower()).rstrip("_")
        pictures[name] = figures.reliability_diagram(
            scores, f"Support: {quality}", share="share", counted="answers"
        )
    for method, scores in results.get("classification", {}).items():
        if method != CHANCE:
            name = re.sub(r"\W+", "_", method.lower()).strip("_")
            pictures[f"confusion_matrix_{name}"] = figures.confusion_matrix(scores, method)
            pictures[f"reliability_{name}"] = figures.reliability_diagram(scores, method)
    if log:
        pictures["losses"] = loss_curves(log)
    return pictures


def _check(results: Mapping, answers: Mapping[str, list], images: Mapping) -> None:
    if not answers or not all(answers.values()):
        raise ValueError("there are no answers to report.")
    missing = [name for name in answers if name not in results["answers"]]
    if missing:
        raise ValueError(
            f'results["answers"] has no figures for {", ".join(missing)}; add '
            "mvaema.evaluation.records.summarize(records) under that name."
        )
    without = {r["image_id"] for r in answers[student_of(results)] if r["image_id"] not in images}
    if without:
        raise ValueError(
            f"{len(without)} micrographs are missing from `images`, such as {min(without)!r}."
        )
    json.dumps(results, allow_nan=False)  # raises


def _jpeg(image: Image.Image, quality: int) -> tuple[bytes, tuple[int, int]]:
    """The image without metadata, downscaled to `MICROGRAPH_SIDE`, gray or RGB; and its size."""
    small = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    small.thumbnail((MICROGRAPH_SIDE, MICROGRAPH_SIDE))
    small.info.clear()
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), small.size


def _embedded_micrograph(image: Image.Image) -> dict:
    jpeg, (width, height) = _jpeg(image, quality=80)
    return {"uri": _data_uri(jpeg, "jpeg"), "width": width, "height": height}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _embedded_png(png: bytes) -> dict:
    # 72 CSS pixels per inch give all pictures the same size of text.
    with Image.open(io.BytesIO(png)) as image:
        width = round(72 * image.width / DPI)
    return {"uri": _data_uri(png, "png"), "width": width}


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _environment() -> jinja2.Environment:
    # Answers are a model's or a teacher's words and may contain markup: everything is escaped.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mvaema.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sentence"] = sentence
    return environment
