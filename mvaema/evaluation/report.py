"""The report: one folder a lab can read, keep and pass on.

    results.json             every figure, as described below
    tables.md                the paper's Tables 1, 4 and 7 with this evaluation's figures, and more
    index.html               all of it on one page, with each micrograph, question and answer,
                             worst first; self-contained, and it requests nothing from any network
    questions.png, confusion_matrix_*.png, reliability_*.png, losses.png
    micrographs/*.jpg        the ten of Table 7

The page and the pictures contain micrographs: the folder is as confidential as they are.

`results` is a dictionary, stored as `results.json`:

    model, dataset, split, date    what was scored, in words; further words and numbers are kept
                                   and shown in the heading
    answers                        name to summary (`mvaema.evaluation.scores.summarize`): the student first,
                                   then its variants and the baselines
    classification                 method ("ITC", "ITM", "LM", "chance") to scores
                                   (`mvaema.evaluation.categories.score_categories`); may be missing
    comparisons                    "first → second" to comparison (`mvaema.evaluation.scores.compare`); may
                                   be missing
"""

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from huggingface_hub import EvalResult
from matplotlib.figure import Figure
from PIL import Image

from mvaema.evaluation import figures
from mvaema.evaluation.scores import Record
from mvaema.training.curves import loss_curves

NAMES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "meteor_no_synonyms": "METEOR without synonyms",
}
TABLE_1 = ("bleu_2", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor", "meteor_no_synonyms")
TABLE_7 = ("bleu_2", "rouge_l", "meteor", "meteor_no_synonyms")
MICROGRAPH_SIDE = 384  # longest side of an embedded micrograph, in pixels


class Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def write_report(
    results: Mapping,
    answers: Mapping[str, list[Record]],
    images: Mapping[str, Image.Image],
    folder: str | Path,
    log: Sequence[Mapping] = (),
    max_answers: int = 2000,
) -> Path:
    """Writes the report and returns the path of its page. Existing files are replaced.

    Args:
        results: the figures, as described at the top of this module.
        answers: name to scored records, the student first; the names of `results["answers"]`
            whose answers the page is to show side by side.
        images: image id to micrograph; may load each on demand.
        log: training log records, for the loss curves (`mvaema.training.curves`).
        max_answers: the page shows this many answers at most, the worst ones.

    Raises:
        ValueError: there are no answers, a name has no figures, figures are not finite, or a
            micrograph is missing.
    """
    _check(results, answers, images)
    figures_json = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    pictures = _pictures(results, log)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(figures_json + "\n", encoding="utf-8")
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)

    student, *others = answers
    metric = _metric(results)
    worst_first = sorted(answers[student], key=lambda r: r["scores"][metric])
    tables = figure_tables(results)
    examples = _examples(worst_first)
    _save_micrographs(examples, images, folder / "micrographs")
    (folder / "tables.md").write_text(
        "\n".join(markdown(t) for t in [*tables, _table_7(student, examples)]), encoding="utf-8"
    )
    shown = worst_first[:max_answers]
    other_answers = {
        name: {(r["image_id"], r["question_id"]): r for r in answers[name]} for name in others
    }
    shown_images = list(dict.fromkeys(r["image_id"] for r in shown))
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            facts={k: v for k, v in results.items() if isinstance(v, str | int | float)},
            tables=tables,
            pictures={name: _embedded(figure) for name, figure in pictures.items()},
            student=student,
            records=shown,
            total=len(worst_first),
            others=other_answers,
            metric=metric,
            metrics=[m for m in TABLE_1 if m in shown[0]["scores"]],
            names=NAMES,
            image_numbers={image_id: i for i, image_id in enumerate(shown_images)},
            micrographs=[_thumbnail(images[image_id]) for image_id in shown_images],
            questions=list(dict.fromkeys(r["question_id"] for r in answers[student])),
            categories=sorted({r.get("category") or "unknown" for r in shown}),
        )
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def figure_tables(results: Mapping) -> list[Table]:
    """The tables of all figures in `results`, laid out as the paper's where it has such a table."""
    summaries = {name: s["overall"]["scores"] for name, s in results["answers"].items()}
    student, student_summary = next(iter(results["answers"].items()))
    metrics = [m for m in TABLE_1 if m in summaries[student]]
    names = [f"{NAMES[m]} (↑)" for m in metrics]
    overall = student_summary["overall"]
    tables = [
        Table(
            "Answers (as Table 1 of the paper)",
            ["Method", *names],
            [[n, *(_mean_std(s.get(m)) for m in metrics)] for n, s in summaries.items()],
            f"Mean ± standard deviation over {overall['n']} answers about {overall['images']} "
            "micrographs.",
        ),
        Table(
            "Answers, with 95 % intervals",
            ["Method", *names],
            [[n, *(_mean_interval(s.get(m)) for m in metrics)] for n, s in summaries.items()],
            f"Bootstrap over {overall['clusters']} clusters (specimens or publications), since "
            "answers about one of them are not independent.",
        ),
    ]
    for title, part in (("question group", "by_question"), ("category", "by_category")):
        rows = [
            [name, str(s["n"]), *(_mean_std(s["scores"].get(m)) for m in metrics)]
            for name, s in student_summary[part].items()
        ]
        if rows:
            header = [title.capitalize(), "Answers", *names]
            tables.append(Table(f"{student}, per {title}", header, rows))
    tables.append(_length_table(summaries))
    for name, comparison in results.get("comparisons", {}).items():
        tables.append(_comparison_table(name, comparison))
    classification = results.get("classification", {})
    if classification:
        tables.append(_accuracy_table(classification))
    for method, scores in classification.items():
        if method != "chance":
            tables.append(_table_4(method, scores))
    return tables


def eval_results(results: Mapping) -> list[EvalResult]:
    """The student's figures for a model card's model-index (`huggingface_hub.ModelCardData`)."""
    summary = next(iter(results["answers"].values()))["overall"]["scores"]
    found = [
        ("visual-question-answering", NAMES[name], name.split("_")[0], summary[name]["mean"])
        for name in TABLE_1
        if name in summary
    ]
    for method, scores in results.get("classification", {}).items():
        if method != "chance":
            for kind, key in (("accuracy", "top_1"), ("f1", "macro_f1")):
                name = f"{key.replace('_', ' ')} by {method}"
                found.append(("image-classification", name, kind, scores[key]))
    return [
        EvalResult(
            task_type=task,
            dataset_type=results["dataset"],
            dataset_name=results["dataset"],
            dataset_split=results.get("split"),
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for task, name, kind, value in found
    ]


def _length_table(summaries: Mapping[str, Mapping]) -> Table:
    rows = [
        [
            name,
            str(s["length_stated"]["n"]),
            _percent(s["length_stated"].get("mean")),
            _percent(s["length_error"].get("median")),
            _percent(s["length_within_20_percent"].get("mean")),
            _percent(s["length_invented"].get("mean")),
        ]
        for name, s in summaries.items()
    ]
    return Table(
        "Lengths stated in the answers",
        ["Method", "True lengths in", "Stated", "Median error", "Within 20 %", "Invented"],
        rows,
        "True lengths in: answers of the teacher that state one. Stated: share of the true "
        "lengths for which the answer gives one; the median relative error is over those. "
        "Within 20 %: share of all true lengths. Invented: share of the other answers "
        "that state a length where the truth has none.",
    )


def _comparison_table(name: str, comparison: Mapping) -> Table:
    rows = [
        [
            NAMES.get(m, m.replace("_", " ")),
            f"{s['first']:.3f}",
            f"{s['second']:.3f}",
            f"{s['difference']:+.3f}",
            _interval(s, "+.3f"),
            "–" if s["p_value"] is None else f"{s['p_value']:.4f}",
        ]
        for m, s in comparison["scores"].items()
        if m != "length_error"  # a single wrong unit rules its mean
    ]
    return Table(
        f"Paired comparison: {name}",
        ["Metric", "First", "Second", "Difference", "95 % interval", "p"],
        rows,
        f"{comparison['n']} answers to the same questions in {comparison['clusters']} clusters; "
        "sign-flip permutation test over clusters, not corrected for the number of metrics.",
    )


def _accuracy_table(classification: Mapping[str, Mapping]) -> Table:
    averages = ("Avg-Precision", "Avg-Recall", "Avg-F1 Score")
    names = ("top_5", "macro_precision", "macro_recall", "macro_f1", "expected_calibration_error")
    rows = []
    for method, s in classification.items():
        low, high = s["top_1_interval"]
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        figures_of_method = (f"{s[name]:.3f}" for name in names)
        rows.append([method, str(s["n"]), f"{s['top_1']:.3f}{interval}", *figures_of_method])
    return Table(
        "Classification",
        ["Method", "Micrographs", "Top-1", "Top-5", *averages, "ECE (↓)"],
        rows,
        "Averages over the categories that occur. Chance: every micrograph is given the training "
        "categories' frequencies. ECE: expected calibration error.",
    )


def _table_4(method: str, scores: Mapping) -> Table:
    rows = []
    for label, s in scores["per_class"].items():
        cells = (
            f"{s[name]:.3f}" + (f"±{s[f'{name}_std']:.3f}" if s[f"{name}_std"] is not None else "")
            for name in ("precision", "recall", "f1")
        )
        row = [*cells] if s["support"] else ["–"] * 3
        rows.append([label.replace("_", " "), *row, str(s["support"])])
    return Table(
        f"Categories by {method} (as Table 4 of the paper)",
        ["Category", "Precision", "Recall", "F1 Score", "Micrographs"],
        rows,
        "± is the bootstrap standard error over clusters (the paper's is over ten folds); none is "
        "given where all micrographs behind a figure are of one cluster.",
    )


def _table_7(student: str, examples: list[Record]) -> Table:
    metrics = [m for m in TABLE_7 if m in examples[0]["scores"]]
    rows = [
        [
            f"![{r['image_id']}](micrographs/{r['image_id']}.jpg)",
            r["reference"],
            r["prediction"],
            *(f"{r['scores'][m]:.3f}" for m in metrics),
        ]
        for r in examples
    ]
    question = examples[0]["question_id"]
    return Table(
        f"Examples for the question “{question}” (as Table 7 of the paper)",
        ["Image", "Ground Truth", f"Answers of {student}", *(NAMES[m] for m in metrics)],
        rows,
        "Not a selection: evenly spaced from the best to the worst answer.",
    )


def _examples(worst_first: list[Record], count: int = 10) -> list[Record]:
    """Answers to the question of the paper's Table 7, evenly spaced from best to worst."""
    best_first = worst_first[::-1]
    of_question = [r for r in best_first if r["question_id"] == "morphology"] or best_first
    count = min(count, len(of_question))
    steps = max(count - 1, 1)
    return [of_question[round(i * (len(of_question) - 1) / steps)] for i in range(count)]


def _pictures(results: Mapping, log: Sequence[Mapping]) -> dict[str, Figure]:
    metric = _metric(results)
    pictures = {"questions": figures.question_bars(results["answers"], metric, NAMES[metric])}
    for method, scores in results.get("classification", {}).items():
        if method != "chance":
            name = re.sub(r"\W+", "_", method.lower()).strip("_")
            pictures[f"confusion_matrix_{name}"] = figures.confusion_matrix(scores, method)
            pictures[f"reliability_{name}"] = figures.reliability_diagram(scores, method)
    if log:
        pictures["losses"] = loss_curves(log)
    return pictures


def _metric(results: Mapping) -> str:
    """METEOR, or its stand-in where these results were scored without WordNet."""
    scores = next(iter(results["answers"].values()))["overall"]["scores"]
    return "meteor" if "meteor" in scores else "meteor_no_synonyms"


def _check(results: Mapping, answers: Mapping[str, list], images: Mapping) -> None:
    if not answers or not all(answers.values()):
        raise ValueError("there are no answers to report.")
    missing = [name for name in answers if name not in results["answers"]]
    if missing:
        raise ValueError(
            f'results["answers"] has no figures for {", ".join(missing)}; add '
            "mvaema.evaluation.scores.summarize(records) under that name."
        )
    student = next(iter(answers))
    without = {r["image_id"] for r in answers[student] if r["image_id"] not in images}
    if without:
        raise ValueError(
            f"{len(without)} micrographs are missing from `images`, such as {min(without)!r}."
        )


def _save_micrographs(records: list[Record], images: Mapping, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for record in records:
        image = _small(images[record["image_id"]])
        image.save(folder / f"{record['image_id']}.jpg", quality=85)


def _small(image: Image.Image) -> Image.Image:
    """A copy without metadata, downscaled to `MICROGRAPH_SIDE`, gray or RGB."""
    small = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    small.thumbnail((MICROGRAPH_SIDE, MICROGRAPH_SIDE))
    small.info.clear()
    return small


def _thumbnail(image: Image.Image) -> dict:
    small = _small(image)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    uri = _data_uri(buffer.getvalue(), "jpeg")
    return {"uri": uri, "width": small.width, "height": small.height}


def _embedded(figure: Figure) -> dict:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    # 72 CSS pixels per inch give all pictures the same size of text.
    width = round(72 * figure.get_figwidth())
    return {"uri": _data_uri(buffer.getvalue(), "png"), "width": width}


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _environment() -> jinja2.Environment:
    # Answers are a model's or a teacher's words and may contain markup: everything is escaped.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mvaema.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment


def markdown(table: Table) -> str:
    """A table as Markdown, under its title."""

    def line(cells: list[str]) -> str:
        # Neither a cell's border nor markup in an answer may end the cell.
        clean = (" ".join(html.escape(c, quote=False).split()).replace("|", "\\|") for c in cells)
        return f"| {' | '.join(clean)} |"

    rows = [line(table.header), line(["---"] * len(table.header)), *map(line, table.rows)]
    note = f"\n{table.note}\n" if table.note else ""
    return f"## {table.title}\n\n" + "\n".join(rows) + f"\n{note}"


def _mean_std(score: Mapping | None) -> str:
    return f"{score['mean']:.3f}±{score['std']:.3f}" if score and score["n"] else "–"


def _mean_interval(score: Mapping | None) -> str:
    return f"{score['mean']:.3f} {_interval(score)}" if score and score["n"] else "–"


def _interval(score: Mapping, form: str = ".3f") -> str:
    return "–" if score["low"] is None else f"[{score['low']:{form}}, {score['high']:{form}}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
