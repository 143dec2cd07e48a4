"""Figures to tables, laid out as the paper's where it has such a table.

`results` is what `mvaema/evaluation/scores.py` describes.
"""

from collections.abc import Mapping

from mvaema.evaluation.questions import Record
from mvaema.evaluation.scores import CHANCE
from mvaema.evaluation.sight import LABELS as SIGHT_LABELS
from mvaema.evaluation.sight_tables import sight_tables
from mvaema.evaluation.table import Table, interval, mean_interval, mean_std
from mvaema.evaluation.texts import LABELS, heading

TABLE_7 = ("bleu_2", "rouge_l", "meteor", "meteor_no_synonyms")


def result_tables(results: Mapping) -> list[Table]:
    """All tables of an evaluation."""
    student = student_of(results)
    tables = [*sight_tables(results), answers_table(results), intervals_table(results)]
    for title, part in (("question group", "by_question"), ("category", "by_category")):
        summaries = results["answers"][student][part]
        if summaries:
            tables.append(_part_table(f"{student}, per {title}", title, results, summaries))
    tables += _facts_tables(results)
    tables.append(_lengths_table(_overall(results)))
    tables += judge_tables(results)
    for name, comparison in results.get("comparisons", {}).items():
        tables += _comparison_tables(name, comparison)
    classification = results.get("classification", {})
    if classification:
        tables.append(accuracy_table(classification))
    for method, scores in classification.items():
        if method != CHANCE:
            tables.append(_categories_table(method, scores))
    return tables


def student_of(results: Mapping) -> str:
    """The name of the student whose results they are."""
    return next(iter(results["answers"]))


def answers_table(results: Mapping) -> Table:
    """Means and standard deviations of the answers of everyone, as in the paper's Table 1."""
    overall = results["answers"][student_of(results)]["overall"]
    return Table(
        "Answers (as Table 1 of the paper)",
        ["Method", *_metric_header(results)],
        [
            [name, *(mean_std(scores.get(m)) for m in results["metrics"])]
            for name, scores in _overall(results).items()
        ],
        f"Mean ± standard deviation over {overall['n']} answers about {overall['images']} "
        "micrographs.",
    )


def intervals_table(results: Mapping) -> Table:
    """Means of the answers of everyone, with their intervals."""
    overall = results["answers"][student_of(results)]["overall"]
    return Table(
        "Answers, with 95 % intervals",
        ["Method", *_metric_header(results)],
        [
            [name, *(mean_interval(scores.get(m)) for m in results["metrics"])]
            for name, scores in _overall(results).items()
        ],
        f"Bootstrap over {overall['clusters']} clusters (specimens or publications), because "
        "answers about the same one are not independent.",
    )


def _part_table(title: str, part: str, results: Mapping, summaries: Mapping[str, Mapping]) -> Table:
    rows = [
        [name, str(s["n"]), *(mean_std(s["scores"].get(m)) for m in results["metrics"])]
        for name, s in summaries.items()
    ]
    return Table(title, [part.capitalize(), "Answers", *_metric_header(results)], rows)


def _overall(results: Mapping) -> dict[str, Mapping]:
    return {name: summary["overall"]["scores"] for name, summary in results["answers"].items()}


def _metric_header(results: Mapping) -> list[str]:
    return [heading(metric) for metric in results["metrics"]]


def _facts_tables(results: Mapping) -> list[Table]:
    """The facts of everyone's answers, and the student's by kind of fact."""
    student = student_of(results)
    overall = {name: summary["overall"] for name, summary in results["answers"].items()}
    return [
        Table(
            "Facts asserted in the answers",
            ["Method", *_FACT_HEADER],
            [_fact_row(name, s["facts"]["all"], s["n"]) for name, s in overall.items()],
            "Per answer; “right” is asserted by the teacher too, “false” contradicted by the "
            "teacher, and on “unsupported” facts the teacher is silent. Precision: right of right "
            "and false. Recall: right of the teacher's facts.",
        ),
        Table(
            f"Facts asserted by {student}, per kind",
            ["Kind", *_FACT_HEADER],
            [
                _fact_row(kind, counts, overall[student]["n"])
                for kind, counts in overall[student]["facts"].items()
            ],
            "Which words assert which fact: `mvaema/evaluation/facts.toml`.",
        ),
    ]


def judge_tables(results: Mapping) -> list[Table]:
    """The grades of everyone that a judge graded, and what they agree with; none without a judge.

    Returns:
        the grades of all, those of the student per question group, and the agreement.
    """
    if not (judge := results.get("judge")) or not judge["graded"]:
        return []
    names = ["Correctness (↑)", "Completeness (↑)", "False claims (↓)"]
    student = student_of(results)

    def row(name: str, summary: Mapping) -> list[str]:
        grades = (f"{g['mean']:.2f} {_span(g, '.2f')}" for g in summary["scores"].values())
        return [name, str(summary["n"]), *grades]

    tables = [
        Table(
            f"Grades by {judge['model']}",
            ["Method", "Answers", *names],
            [row(who, summary["overall"]) for who, summary in judge["answers"].items()],
            f"Grades from 0 to 3, with 95 % intervals over clusters. {judge['graded']} of "
            f"{judge['asked']} answers were graded.",
        )
    ]
    if student in judge["answers"]:
        parts = judge["answers"][student]["by_question"]
        title = f"Grades of {student} by {judge['model']}, per question group"
        rows = [row(question, summary) for question, summary in parts.items()]
        tables.append(Table(title, ["Question group", "Answers", *names], rows))
    agreement = [
        [
            measure.replace("_", " "),
            *(
                "–" if a["rho"] is None else f"{a['rho']:+.2f} {_span(a, '+.2f')}"
                for a in of.values()
            ),
        ]
        for measure, of in judge["agreement"].items()
    ]
    note = f"Spearman's rank correlation over the answers of {student}, with 95 % intervals."
    tables.append(Table("Agreement with the judge", ["Measure", *names], agreement, note))
    return tables


def _span(figure: Mapping, form: str) -> str:
    return "" if figure["low"] is None else f"[{figure['low']:{form}}, {figure['high']:{form}}]"


_FACT_HEADER = ["Right (↑)", "False (↓)", "Unsupported", "Precision", "Recall"]


def _fact_row(name: str, counts: Mapping, n: int) -> list[str]:
    per_answer = (f"{counts[c] / n:.3f}" for c in ("right", "false", "unsupported"))
    shares = (_percent(counts[share]) for share in ("fact_precision", "fact_recall"))
    return [name, *per_answer, *shares]


def _lengths_table(summaries: Mapping[str, Mapping]) -> Table:
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
        ["Method", "Teacher states one", "Stated", "Median error", "Within 20 %", "Invented"],
        rows,
        "Teacher states one: how many of the teacher's answers state a length. Stated: share of "
        "these lengths for which the answer gives a length; the median relative error is over "
        "them. Within 20 %: share of all the teacher's lengths. Invented: of the other answers, "
        "the share that states a length although the teacher's does not.",
    )


def _comparison_tables(name: str, comparison: Mapping) -> list[Table]:
    """Two: the scores of answers, and what each side owes to its eyes, where both have eyes."""
    header = ["Metric", "First", "Second", "Difference", "95 % interval", "p"]
    # A single wrong unit dominates the mean of the length errors.
    scores = {m: s for m, s in comparison["scores"].items() if m != "length_error"}
    tables = [
        Table(
            f"Paired comparison: {name}",
            header,
            _compared_rows(scores, LABELS),
            f"{comparison['n']} answers to the same questions, in {comparison['clusters']} "
            "clusters. p: sign-flip permutation test over clusters, not corrected for the number "
            "of metrics.",
        )
    ]
    if sight := comparison.get("sight"):
        title = f"Paired comparison of sight: {name}"
        tables.append(Table(title, header, _compared_rows(sight, SIGHT_LABELS)))
    return tables


def _compared_rows(scores: Mapping[str, Mapping], labels: Mapping[str, str]) -> list[list[str]]:
    return [
        [
            labels.get(m, m.replace("_", " ")),
            f"{s['first']:.3f}",
            f"{s['second']:.3f}",
            f"{s['difference']:+.3f}",
            interval(s, "+.3f"),
            "–" if s["p_value"] is None else f"{s['p_value']:.4f}",
        ]
        for m, s in scores.items()
    ]


def accuracy_table(classification: Mapping[str, Mapping]) -> Table:
    """Accuracy and calibration of each way to classify.

    Args:
        classification: of the results; not empty.
    """
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
        "Averages are over the categories that occur. Chance: every micrograph gets the "
        "frequencies of the training categories. ECE: expected calibration error.",
    )


def _categories_table(method: str, scores: Mapping) -> Table:
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
        "± is the bootstrap standard error over clusters (in the paper, over ten folds). There is "
        "none where all micrographs behind a figure are of one cluster.",
    )


def examples_table(student: str, examples: list[Record]) -> Table:
    """Answers beside the teacher's, as in the paper's Table 7.

    Args:
        examples: scored records about one question, best first; their images are in `micrographs/`.
    """
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
        ["Image", "Ground Truth", f"Answers of {student}", *(LABELS[m] for m in metrics)],
        rows,
        "Not hand-picked: evenly spaced from the best to the worst answer.",
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
