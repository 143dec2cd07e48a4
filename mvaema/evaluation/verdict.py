"""Step 3, what the figures say: does the student see, is it better than not looking, where does it
fail.

What is special about it:
- every question is answered by *yes*, *no* or *not known* and the figure behind it. Not known is
  what was not measured, has no interval, or has one that includes the null;
- yes is always the good answer, so that a page can be read at a glance;
- no single metric decides. METEOR does not tell a student that looks from one that does not, and
  an answer that says nothing makes no false claim. A section is *yes* only if all its questions
  are, and *in part* where some are;
- it needs the results alone (`mvaema/evaluation/scores.py`). The page, `tables.md`,
  `results.json` and what `mvaema eval` prints say the same.
"""

from collections.abc import Mapping

from mvaema.evaluation.conditions import BLANK
from mvaema.evaluation.scores import CHANCE, TYPICAL
from mvaema.evaluation.sight import ANSWER, CHANCES, GAIN, ITM, WAYS
from mvaema.evaluation.table import Table, interval
from mvaema.evaluation.texts import FALSE_CLAIMS, LABELS

YES, NO, NOT_KNOWN, IN_PART = "yes", "no", "not known", "in part"
WORST = 2  # question groups and categories that are named
NOT_MEASURED = "Not measured."
METHOD = "ITC+ITM"  # how a student classifies unless told otherwise


def verdict(results: Mapping) -> list[dict]:
    """What the figures of an evaluation say.

    Args:
        results: as `mvaema/evaluation/scores.py` describes them; what is missing is not known.

    Returns:
        three sections, each with its `question`, `answer`, a `note` that explains its words, and
        `findings`. Each finding has a `question`, an `answer` (`YES`, `NO`, `NOT_KNOWN`), the
        `figure` in words, and as numbers, where there are any, its `value` with the 95 % interval
        `low`, `high`, and the `null` that the interval must exclude.
    """
    return [_sees(results), _better(results), _fails(results)]


def decide(low: float | None, high: float | None, null: float = 0.0, better: int = 1) -> str:
    """Whether a figure with a 95 % interval is on the good side of the null.

    Args:
        low, high: the interval, or None where there is none.
        null: what the figure would be without any effect.
        better: 1 if more is better, -1 if less is.
    """
    if low is None or high is None:
        return NOT_KNOWN
    if low == high == null:  # there is nothing uncertain about it
        return NO
    if low > null or high < null:
        return YES if (low > null) == (better > 0) else NO
    return NOT_KNOWN


def overall(answers: list[str]) -> str:
    """The answer of a section, from those of its questions."""
    if all(answer == YES for answer in answers):
        return YES
    if YES in answers:
        return IN_PART
    return NO if NO in answers else NOT_KNOWN


def verdict_lines(sections: list[dict]) -> list[str]:
    """The verdict for a terminal: a line for each section and for each finding in it."""
    lines = []
    for section in sections:
        lines.append(f"{section['question']} {sentence(section['answer'])}")
        for finding in section["findings"]:
            lines.append(f"  {finding['answer']:<9}  {finding['question']} {finding['figure']}")
    return lines


def sentence(answer: str) -> str:
    """An answer as a sentence."""
    return f"{answer[0].upper()}{answer[1:]}."


def verdict_table(sections: list[dict]) -> Table:
    """The verdict as a table."""
    rows = []
    for section in sections:
        rows.append([section["question"], section["answer"], ""])
        rows += [[f["question"], f["answer"], f["figure"]] for f in section["findings"]]
    notes = " ".join(section["note"] for section in sections)
    return Table("Verdict", ["Question", "Answer", "Figure"], rows, notes)


def _sees(results: Mapping) -> dict:
    student = _student(results)
    seen = results["sight"].get(student, {"overall": {"scores": {}}})["overall"]["scores"]
    twin = _comparison(results, f"{student}, {BLANK}")
    findings = [
        _gain("Does the micrograph help it?", seen.get("image_gain_per_token"), "a blank image"),
        _gain("More than another one would?", seen.get("own_gain_per_token"), "that one"),
        _choice(seen),
        _categories(results["classification"]),
        *_words(twin, results, "its blind twin"),
    ]
    note = (
        "A micrograph helps if it makes the true answer likelier. The blind twin is the same "
        "student, shown a blank image. Another micrograph is one of another specimen."
    )
    return _section("Does it see?", findings, note)


def _better(results: Mapping) -> dict:
    typical = _comparison(results, TYPICAL)
    recall = typical.get("scores", {}).get("fact_recall")
    facts = _difference("Does it state more of the true facts?", recall, "of them")
    note = (
        "The typical answer is the training answer to the same question that is most like all "
        "others. It never looks at the micrograph."
    )
    findings = [*_words(typical, results, "the typical answer"), facts]
    return _section("Is it better than the typical answer?", findings, note)


def _fails(results: Mapping) -> dict:
    student = results["answers"][_student(results)]
    typical = _comparison(results, TYPICAL)
    findings, named = [], []
    for part, what in (("by_question", "question group"), ("by_category", "category")):
        found = _worst(student[part])
        named.append([name.replace("_", " ") for name, _ in found])
        if not found:
            figure = f"No {what} has false claims and answers about two specimens."
            question = f"Is it better than the typical answer in the worst {what}?"
            findings.append(_finding(question, NOT_KNOWN, figure))
        for rank, (name, score) in enumerate(found):
            place = f"worst {what}" if rank == 0 else f"next worst {what}"
            question = f"Is it better in {name.replace('_', ' ')}, the {place}?"
            of_part = typical.get(part, {}).get(name, {}).get("scores", {}).get(FALSE_CLAIMS)
            findings.append(_in_part(question, score, of_part))
    lengths = typical.get("scores", {}).get("length_within_20_percent")
    findings.append(_difference("Does it get more lengths right to 20 %?", lengths, "of them"))
    groups, categories = (" and ".join(names) for names in named)
    places = [groups and f"in {groups}", categories and f"with {categories}"]
    answer = "most " + ", ".join(filter(None, places)) if any(places) else NOT_KNOWN
    note = (
        f"Named are the {WORST} question groups and categories with the most false claims per "
        "answer, of those with answers about two specimens or more. They were chosen for being "
        "worst, so some of what is bad about them is chance. Better means better than the typical "
        "answer."
    )
    section = _section("Where does it fail?", findings, note)
    return {**section, "answer": answer}


def _worst(parts: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
    """Names and false claims of the parts with most of them."""
    scores = {name: part["scores"].get(FALSE_CLAIMS) for name, part in parts.items()}
    known = [
        (name, score)
        for name, score in scores.items()
        if name != "unknown" and score and score.get("mean") and score["low"] is not None
    ]
    return sorted(known, key=lambda item: -item[1]["mean"])[:WORST]


def _in_part(question: str, score: Mapping, difference: Mapping | None) -> dict:
    """A finding about the answers of one question group or category."""
    claims = f"{score['mean']:.2f} false claims per answer {interval(score, '.2f')}"
    if difference is None:
        return _finding(question, NOT_KNOWN, f"{claims}; not compared with the typical answer.")
    against = f"{difference['first']:.2f}, difference {_signed(difference, '+.2f')}."
    figure = f"{claims} against {against}"
    return {**_compared(question, difference, better=-1), "figure": figure}


def _gain(question: str, score: Mapping | None, over: str) -> dict:
    if not score or not score["n"]:
        return _finding(question, NOT_KNOWN, NOT_MEASURED)
    figure = f"{score['mean']:z.3f} nats per token over {over} {_span(score)}; blind: 0."
    return _measured(question, figure, score["mean"], score["low"], score["high"])


def _choice(seen: Mapping) -> dict:
    """By the matching head; of a model that has none by the likelihoods that the image adds."""
    question = "Does it find the true answer among others?"
    scores = {way: seen.get(f"{ANSWER}_{way}_top_1") for way in (ITM, GAIN)}
    way = next((way for way, score in scores.items() if score and score["n"]), None)
    chance = seen.get(f"{ANSWER}_{CHANCES}_top_1")
    if way is None or not chance or not chance["n"]:
        return _finding(question, NOT_KNOWN, NOT_MEASURED)
    score = scores[way]
    figure = (
        f"{_percent(score['mean'])} right by the {WAYS[way]} {_span(score, _percent)}; guessing: "
        f"{_percent(chance['mean'])}."
    )
    limits = score["mean"], score["low"], score["high"]
    return _measured(question, figure, *limits, null=chance["mean"])


def _categories(classification: Mapping) -> dict:
    question = "Does it name the category?"
    if METHOD not in classification or CHANCE not in classification:
        return _finding(question, NOT_KNOWN, NOT_MEASURED)
    score, chance = classification[METHOD], classification[CHANCE]["top_1"]
    low, high = score["top_1_interval"]
    span = _span({"low": low, "high": high}, _percent)
    figure = f"{_percent(score['top_1'])} right by {METHOD} {span}; guessing: {_percent(chance)}."
    return _measured(question, figure, score["top_1"], low, high, null=chance)


def _words(comparison: Mapping, results: Mapping, whom: str) -> list[dict]:
    """Two findings about the answers beside somebody else's: false claims and wording."""
    scores = comparison.get("scores", {})
    metric = text_metric(results)
    claims = f"Does it make fewer false claims than {whom}?"
    wording = f"Is it worded more like the true answer than {whom}?"
    return [
        _difference(claims, scores.get(FALSE_CLAIMS), "per answer", better=-1),
        _difference(wording, scores.get(metric), LABELS[metric], before=True),
    ]


def _difference(
    question: str, score: Mapping | None, unit: str, better: int = 1, before: bool = False
) -> dict:
    """A finding from a paired comparison, in which the student comes second.

    Args:
        unit: what the figure is of, written behind it, or `before` it.
    """
    if score is None:
        return _finding(question, NOT_KNOWN, NOT_MEASURED)
    own = f"{score['second']:.3f}"
    own = f"{unit} {own}" if before else f"{own} {unit}"
    figure = f"{own} against {score['first']:.3f}, difference {_signed(score)}."
    return {**_compared(question, score, better), "figure": figure}


def _compared(question: str, score: Mapping, better: int) -> dict:
    limits = score["difference"], score["low"], score["high"]
    return _measured(question, "", *limits, better=better)


def _measured(
    question: str,
    figure: str,
    value: float,
    low: float | None,
    high: float | None,
    null: float = 0.0,
    better: int = 1,
) -> dict:
    numbers = {"value": value, "low": low, "high": high, "null": null}
    return {**_finding(question, decide(low, high, null, better), figure), **numbers}


def _finding(question: str, answer: str, figure: str) -> dict:
    return {"question": question, "answer": answer, "figure": figure}


def _section(question: str, findings: list[dict], note: str) -> dict:
    answer = overall([finding["answer"] for finding in findings])
    return {"question": question, "answer": answer, "note": note, "findings": findings}


def text_metric(results: Mapping) -> str:
    """The metric of wording: METEOR, or its stand-in without WordNet."""
    return "meteor" if "meteor" in results["metrics"] else "meteor_no_synonyms"


def _student(results: Mapping) -> str:
    return next(iter(results["answers"]))


def _comparison(results: Mapping, other: str) -> Mapping:
    return results["comparisons"].get(f"{other} → {_student(results)}", {})


def _signed(score: Mapping, form: str = "+.3f") -> str:
    return f"{score['difference']:{form}} {_span(score, lambda x: f'{x:{form}}')}"


def _span(score: Mapping, write=lambda x: f"{x:z.3f}") -> str:
    if score["low"] is None:
        return "(no interval: all of one specimen)"
    return f"[{write(score['low'])}, {write(score['high'])}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
