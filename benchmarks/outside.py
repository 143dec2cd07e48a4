"""python -m benchmarks.outside folder MICROGRAPHS --table TABLE --model STUDENT
python -m benchmarks.outside matcha|emvista|microvqa --model STUDENT [--source ID_OR_FOLDER]

A student on data that others made, beside the same student with a blank image: what that can do
too, the student does not owe to its eyes. `benchmarks/outside_data.py` describes the data. A
published set is downloaded when it is named here and `--source` is no folder, and not otherwise.

`folder` asks the student's own questions. Captions are scored as `mvaema eval` scores answers.
Counts and sizes are read from the answers as `mvaema/evaluation/facts.py` reads facts, and the
stated one that is nearest to the expert's is compared with it: right if it is off by at most
`--tolerance`. An answer that lists many lengths is therefore favoured, and so is its blank twin. A
count of one is never read.

A published set is answered by likelihood, by a student only: of all choices the one that the
student finds likeliest after the question, `likelihood` as a sum over its words, `per token` as
their mean, `gain` minus the same with a blank image, and `itm`, `itc` by its other heads. The blank
twin of `gain` is at chance by definition. Only the first image of a question is shown. Questions
without choices are answered in free text and scored as captions are.

Intervals are of 95 %, over groups.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.outside_data import READERS, SOURCES, Item, describe, read_table
from lengths_mvaema import Length, relative_error
from mvaema.evaluation.answerers import ChatModel, Student, load_answerer
from mvaema.evaluation.conditions import BLANK, PLAIN, blank_image
from mvaema.evaluation.facts import COUNT, LENGTH, extract_facts
from mvaema.evaluation.lengths import pair_lengths
from mvaema.evaluation.likelihoods import Scorer
from mvaema.evaluation.questions import Record
from mvaema.evaluation.records import compare, score_records, summarize
from mvaema.evaluation.sight import rank_scores
from mvaema.evaluation.table import Table, interval, markdown, mean_interval
from mvaema.evaluation.wordnet import has_wordnet
from mvaema.files import write_json
from mvaema.micrographs.dataset import DatasetError
from mvaema.micrographs.microscope import UnreadableMicrograph, read_micrograph
from pixels_mvaema import to_8bit

# What an expert states, the question whose answer should state it too, and the kind of fact.
ASKED = {"caption": "basics", "count": "size_distribution", "size_nm": "size_distribution"}
KINDS = {"count": COUNT, "size_nm": LENGTH}
ITC, ITM = "ITC", "ITM"

Figures = dict[str, dict]  # part of the data to its figures


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        answerer = load_answerer(args.model, decoding=args.decoding)
        figures = _folder(answerer, args) if args.data == "folder" else _published(answerer, args)
    except (OSError, ValueError, UnreadableMicrograph) as error:  # DatasetError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 1
    for part, of_part in figures.items():
        print(markdown(_table(part, of_part)))
    if args.output:
        write_json(Path(args.output), {"model": args.model, "data": args.data, **figures})
    return 0


def _folder(answerer: Student | ChatModel, args: argparse.Namespace) -> Figures:
    folder = Path(args.folder)
    rows = read_table(Path(args.table), folder)
    asked = {
        name: answerer.questions.get(text, text)
        for name, text in zip(ASKED, (args.caption, args.count, args.size), strict=True)
    }
    return score_folder(answerer, rows, folder, asked, args.tolerance)


def score_folder(
    answerer: Student | ChatModel,
    rows: list[dict],
    folder: Path,
    questions: Mapping[str, str],
    tolerance: float = 0.2,
) -> Figures:
    """The figures of a folder of micrographs.

    Args:
        rows: as `read_table` returns them.
        questions: column of the table to the question whose answer is compared with it.
        tolerance: largest relative error of a count or a size that is right.

    Returns:
        column to `PLAIN` and `BLANK`, as `records.summarize` gives them overall, and `difference`,
        as `records.compare` gives it, the former minus the latter. Columns that are empty are left
        out.
    """
    texts = list(dict.fromkeys(questions.values()))
    answers = {PLAIN: [], BLANK: []}
    for row in rows:
        shown = read_micrograph(folder / row["file_name"])
        size = row["pixel_size_nm"] or shown.pixel_size_nm
        for condition, image in ((PLAIN, shown.image), (BLANK, blank_image(shown.image.size))):
            (found,) = answerer.answer([image], texts, [None], [size], [row["scale_bar"]])
            answers[condition].append(dict(zip(texts, found, strict=True)))
    synonyms = has_wordnet()
    figures = {}
    for column, question in questions.items():
        scored = {}
        for condition, found in answers.items():
            records = [
                _record(row["file_name"], row["group"], question, str(row[column]), said[question])
                for row, said in zip(rows, found, strict=True)
                if row[column] is not None
            ]
            if records and column in KINDS:
                scored[condition] = [_score_number(r, KINDS[column], tolerance) for r in records]
            elif records:
                scored[condition] = score_records(records, synonyms)
        if scored:
            figures[column] = _beside_blank(scored)
    return figures


def _record(image: str, group: str | None, question: str, reference: str, said: str) -> Record:
    return {
        "image_id": image,
        "group": group,
        "question_id": question,
        "question": question,
        "reference": reference,
        "prediction": said,
    }


def _score_number(record: Record, kind: str, tolerance: float) -> Record:
    """The record with `scores`: how near its answer comes to the number of its reference."""
    true = Length(*[float(record["reference"])] * 2)
    stated = [f.range for f in extract_facts(record["prediction"]) if f.kind == kind]
    errors = [relative_error(stated[i], true) for i, _ in pair_lengths(stated, [true])]
    scores = {
        "stated": float(bool(errors)),
        "error": errors[0] if errors else None,
        "right": float(bool(errors) and errors[0] <= tolerance),
    }
    return {**record, "scores": scores}


def _published(answerer: Student | ChatModel, args: argparse.Namespace) -> Figures:
    items = READERS[args.data](args.source or SOURCES[args.data], args.split, args.limit)
    print(f"{args.data}: {describe(items)}")
    return score_items(answerer, items)


def score_items(answerer: Student | ChatModel, items: list[Item]) -> Figures:
    """The figures of a published set: `choices`, `free text`, or both, as `score_folder` has them.

    Raises:
        ValueError: there are choices, and the model is no student; or there is nothing.
    """
    if not items:
        raise DatasetError("there are no questions to ask.")
    choosing = [item for item in items if item.choices]
    if choosing and not isinstance(answerer, Student):
        raise ValueError(
            f"{answerer.name} is not an MVaEMa model. Choices are ranked by likelihood, which is "
            "read from students only; ask chat models through `mvaema/evaluation/inspect_task.py`."
        )
    figures = {}
    if choosing:
        figures["choices"] = _beside_blank(choose(answerer, choosing))
    if free := [item for item in items if not item.choices]:
        figures["free text"] = _beside_blank(answer_freely(answerer, free))
    return figures


def answer_freely(answerer: Student | ChatModel, items: list[Item]) -> dict[str, list[Record]]:
    """Condition to scored records."""
    said: dict[str, list[Record]] = {PLAIN: [], BLANK: []}
    for item in items:
        shown = to_8bit(item.load())
        for condition, image in ((PLAIN, shown), (BLANK, blank_image(shown.size))):
            ((answer,),) = answerer.answer([image], [item.question], [None], [None], [None])
            record = _record(item.key, item.group, item.question, item.reference, answer)
            said[condition].append(record)
    synonyms = has_wordnet()
    return {condition: score_records(records, synonyms) for condition, records in said.items()}


def choose(answerer: Student, items: list[Item]) -> dict[str, list[Record]]:
    """Condition to records whose scores say, per way to rank, whether the true choice is first.

    Equals share the first place. `chance` is one over the number of choices.
    """
    scorer = Scorer(answerer.model)
    blank = scorer.see(blank_image())
    chosen: dict[str, list[Record]] = {PLAIN: [], BLANK: []}
    cut = 0
    for item in items:
        prompt, choices = [item.question], [(0, choice) for choice in item.choices]
        cut += any(answerer.model.processor(text=prompt).truncated.get("text", ()))
        alone = scorer.losses(blank, prompt, choices)
        shown = scorer.see(to_8bit(item.load()))
        for condition, seen in ((PLAIN, shown), (BLANK, blank)):
            losses = alone if seen is blank else scorer.losses(seen, prompt, choices)
            ways = {
                "likelihood": [-loss for loss, _ in losses],
                "per token": [-loss / tokens for loss, tokens in losses],
                "gain": [b - loss for (loss, _), (b, _) in zip(losses, alone, strict=True)],
            }
            if ITM in answerer.methods:
                ways["itm"] = scorer.matches(seen, item.choices)
            if ITC in answerer.methods:
                ways["itc"] = scorer.similarities(seen, item.choices)
            record = _record(item.key, item.group, item.question, item.reference, "")
            right = {way: rank_scores(values, item.true)[0] for way, values in ways.items()}
            record["scores"] = right | {"chance": 1 / len(item.choices)}
            chosen[condition].append(record)
    if cut:
        limit = answerer.model.processor.tokenizer.model_max_length
        print(f"{cut} of {len(items)} questions are longer than {limit} tokens and were cut.")
    return chosen


def _beside_blank(scored: Mapping[str, list[Record]]) -> dict:
    figures = {condition: summarize(records)["overall"] for condition, records in scored.items()}
    return figures | {"difference": compare(scored[BLANK], scored[PLAIN])}


def _table(part: str, figures: dict) -> Table:
    own, blank, both = figures[PLAIN], figures[BLANK], figures["difference"]["scores"]
    rows = [
        [
            name,
            str(score["n"]),
            mean_interval(score),
            mean_interval(blank["scores"][name]),
            f"{both[name]['difference']:+.3f} {interval(both[name], '+.3f')}"
            if name in both
            else "–",
        ]
        for name, score in own["scores"].items()
    ]
    title = f"{part}: {own['n']} answers, {own['images']} micrographs, {own['clusters']} groups"
    return Table(title, ["score", "n", "student", "blank image", "difference"], rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.outside",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    data = parser.add_subparsers(dest="data", required=True)
    folder = data.add_parser(
        "folder", help="micrographs with an expert's table", allow_abbrev=False
    )
    folder.add_argument("folder", metavar="MICROGRAPHS")
    folder.add_argument("--table", required=True, help="CSV or JSON lines; see outside_data.py")
    folder.add_argument(
        "--tolerance", type=float, default=0.2, help="relative error that is right (0.2)"
    )
    for name, column in (("caption", "caption"), ("count", "count"), ("size", "size_nm")):
        folder.add_argument(
            f"--{name}",
            default=ASKED[column],
            metavar="QUESTION",
            help=f"id or wording of the question about it ({ASKED[column]})",
        )
    for name, source in SOURCES.items():
        published = data.add_parser(name, help=f"{source}, or a copy of it", allow_abbrev=False)
        published.add_argument("--source", help=f"Hub id, or folder of a copy ({source})")
        published.add_argument("--split", help="by default the one that outside_data.py names")
        published.add_argument("--limit", type=int, help="so many questions, from the first")
    for one in data.choices.values():
        one.add_argument("--model", required=True, help="folder or Hub id")
        one.add_argument("--decoding", help="how a student decodes; by default its own way")
        one.add_argument("--output", metavar="FILE", help="JSON file for the figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
