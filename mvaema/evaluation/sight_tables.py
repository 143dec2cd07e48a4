"""What a student owes to its eyes as tables; the first has all measures side by side.

`results` is what `mvaema/evaluation/scores.py` describes.
"""

from collections.abc import Mapping

from mvaema.evaluation.scores import CHANCE
from mvaema.evaluation.sight import ANSWER, CHANCES, GAIN, ITM, MICROGRAPH, PREFIX, WAYS
from mvaema.evaluation.table import Table, interval, mean_interval
from mvaema.evaluation.texts import LABELS

# The ways to choose that the tables of all measures show.
SHOWN_WAYS = (GAIN, ITM)
TEXT_METRICS = ("meteor", "meteor_no_synonyms", "rouge_l", "bleu_4")
FALSE_CLAIMS = "false_claims"


def sight_tables(results: Mapping) -> list[Table]:
    """All of them; where likelihoods were not asked for only the first."""
    tables = [twins_table(results)]
    if results["sight"]:
        tables += [_gain_table(results), _choices_table(results)]
    if results["support"]:
        tables.append(_support_table(results["support"]))
    return tables


def twins_table(results: Mapping) -> Table:
    """Everyone in every measure."""
    overall = {name: summary["overall"]["scores"] for name, summary in results["answers"].items()}
    student = next(iter(overall))
    metrics = {m: LABELS[m] for m in TEXT_METRICS if m in overall[student]}
    if FALSE_CLAIMS in overall[student]:
        metrics[FALSE_CLAIMS] = "False claims per answer (↓)"
    methods = [method for method in results["classification"] if method != CHANCE]
    categories = {student: results["classification"], **results["twin_classification"]}
    header = ["", "Image gain, nats per token"]
    for way in SHOWN_WAYS:
        header += [f"True answer by {WAYS[way]}", "MRR"]
    header += [*(f"Category by {method}" for method in methods), *metrics.values()]
    rows = []
    for name, scores in overall.items():
        seen = results["sight"].get(name, {"overall": {"scores": {}}})["overall"]["scores"]
        cells = [name, mean_interval(seen.get("image_gain_per_token"))]
        for way in SHOWN_WAYS:
            cells += [mean_interval(seen.get(f"{ANSWER}_{way}_{f}")) for f in ("top_1", "mrr")]
        cells += [_top_1(categories.get(name, {}).get(method)) for method in methods]
        rows.append(cells + [mean_interval(scores.get(metric)) for metric in metrics])
    rows.append(_chance_row(results, methods, len(metrics)))
    return Table("What the image is worth", header, rows, _twins_note(results))


def _chance_row(results: Mapping, methods: list[str], metrics: int) -> list[str]:
    seen = next(iter(results["sight"].values()), {"overall": {"scores": {}}})["overall"]["scores"]
    choice = [_mean(seen.get(f"{ANSWER}_{CHANCES}_{figure}")) for figure in ("top_1", "mrr")]
    category = results["classification"].get(CHANCE)
    top_1 = "–" if category is None else f"{category['top_1']:.3f}"
    return [CHANCE, "0", *choice * len(SHOWN_WAYS), *[top_1] * len(methods), *["–"] * metrics]


def _twins_note(results: Mapping) -> str:
    student = next(iter(results["answers"]))
    if not results["sight"]:
        return (
            f"{student} was not asked for likelihoods, so image gain and choices are not measured."
        )
    overall = results["sight"][student]["overall"]
    chosen = overall["scores"][f"{ANSWER}_{CHANCES}_top_1"]["n"]
    return (
        "Image gain: LM loss of the true answers with a blank image minus with the image shown. "
        f"True answer: how often it is ranked first among answers to the same question about "
        f"micrographs of other groups, usually eight, over {chosen} of {overall['n']} questions "
        "(the rest are of groups too large to deal out). Blank image and another micrograph: the "
        "same student, shown that instead. Brackets: 95 % intervals over groups."
    )


def _gain_table(results: Mapping) -> Table:
    student, summary = next(iter(results["sight"].items()))
    other = results["sight"].get(f"{student}, another micrograph", {})
    rows = []
    for name, part, of_other in (
        ("all", summary["overall"], other.get("overall", {})),
        *(
            (q, s, other.get("by_question", {}).get(q, {}))
            for q, s in summary["by_question"].items()
        ),
    ):
        scores, theirs = part["scores"], of_other.get("scores", {})
        figures = [
            scores["image_gain_per_token"],
            scores["image_gain"],
            theirs.get("image_gain_per_token"),
            scores["own_gain_per_token"],
            scores["own_gain"],
        ]
        rows.append([name, str(part["n"]), *map(mean_interval, figures)])
    return Table(
        f"Image gain of {student}, per question group",
        [
            "Question group",
            "Answers",
            "Own image, per token",
            "per answer",
            "Another micrograph, per token",
            "Own minus another, per token",
            "per answer",
        ],
        rows,
        "In nats: LM loss of the teacher's answer with a blank image minus with the micrograph, "
        "its own or another one of another group.",
    )


def _choices_table(results: Mapping) -> Table:
    student, summary = next(iter(results["sight"].items()))
    scores = summary["overall"]["scores"]
    rows = []
    for what, title in ((ANSWER, "Which answer is true?"), (MICROGRAPH, "Which micrograph?")):
        for way, label in {**WAYS, CHANCES: CHANCE}.items():
            columns = [
                scores.get(f"{prefix}{what}_{way}_{figure}")
                for prefix in PREFIX.values()
                for figure in ("top_1", "mrr")
            ]
            form = _mean if way == CHANCES else mean_interval
            if any(column and column["n"] for column in columns):
                rows.append([title, label, *map(form, columns)])
    counts = [scores[f"{p}{ANSWER}_{CHANCES}_top_1"]["n"] for p in PREFIX.values()]
    return Table(
        f"Choices of {student}",
        ["", "by", "Top-1", "MRR", "Top-1, same category", "MRR, same category"],
        rows,
        f"Of {summary['overall']['n']} questions, {counts[0]} are dealt into blocks of answers "
        f"from different groups, and {counts[1]} into blocks of one category as well. Each "
        "micrograph chooses among a block's answers, and each answer among its micrographs. The "
        "prompt states no scale. MRR: mean of 1 / rank.",
    )


def _support_table(support: Mapping[str, Mapping]) -> Table:
    rows = []
    for quality, s in support.items():
        for name, part in (("all", s), *s["by_question"].items()):
            area = f"{part['auroc']:.3f} {interval(part)}"
            of_all = [f"{s[n]:.3f}" for n in ("share", "support", "expected_calibration_error")]
            shown = [str(s["n"]), *of_all] if name == "all" else [""] * 4
            rows.append([quality, name, area, *shown])
    return Table(
        "Support",
        ["Predicted", "Question group", "AUROC", "Answers", "Share", "Mean support", "ECE (↓)"],
        rows,
        "Support is the matching head's probability that the student's own answer fits its "
        "micrograph. AUROC: probability that an answer of which the statement is true has more of "
        "it than one of which it is not; 0.5 is chance. Share: of how many answers it is true. "
        "ECE: expected calibration error of support as the probability of that.",
    )


def _top_1(scores: Mapping | None) -> str:
    if scores is None:
        return "–"
    low, high = scores["top_1_interval"]
    return f"{scores['top_1']:.3f} {interval({'low': low, 'high': high})}"


def _mean(score: Mapping | None) -> str:
    return f"{score['mean']:.3f}" if score and score["n"] else "–"
