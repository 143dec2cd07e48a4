"""python -m benchmarks.fact_extraction [DATASET --backbone MODEL]

How well `mvaema.evaluation.facts` reads an answer, against 200 answers read one by one: of the
facts that it finds, the share that the reader found (precision), and of those that the reader
found, the share that it finds (recall). With a dataset also the false claims per answer of
answers that need no student.

`fact_labels.jsonl` holds the answers, 20 per question group, and the facts that each asserts.
They were drawn by seed from a teacher's answers about micrographs under CC-BY-4.0 (Aversa et al.
2018) and MIT. One reader, a language model, labelled each half before it saw what the program
finds in it; the same reader wrote the lexicon. It was fitted to the first half and has not been
changed since the second was labelled: the second half is the honest one.

How they were read: what the answer says of the micrograph, whichever object it says it of. Uses
("as a filler") and suppositions ("may be") are left out. `label` is a label that names what is
seen, `scale` the length printed at the bar, in nanometres, and `share` percent of the image.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mvaema.evaluation.facts import extract_facts

LABELS = Path(__file__).with_name("fact_labels.jsonl")
HALVES = ("first", "second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("dataset", nargs="?", help="micrographs with answers, train and validation")
    parser.add_argument("--backbone", help="image model of transformers, for the nearest image")
    args = parser.parse_args()
    for half in HALVES:
        print(f"\n{half} half")
        for line in _table(agreement(half)):
            print(line)
    if args.dataset:
        print_references(args.dataset, args.backbone)


def agreement(half: str) -> dict[str, tuple[int, int, int]]:
    """Kind of fact to how many both, only the program and only the reader found; first `all`."""
    both, program, reader = Counter(), Counter(), Counter()
    for line in LABELS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["half"] != half:
            continue
        found, read = {str(fact) for fact in extract_facts(row["answer"])}, set(row["facts"])
        for counts, facts in (
            (both, found & read),
            (program, found - read),
            (reader, read - found),
        ):
            counts.update(fact.partition(":")[0] for fact in facts)
    kinds = {"all": (both.total(), program.total(), reader.total())}
    for kind in sorted(both | program | reader):
        kinds[kind] = (both[kind], program[kind], reader[kind])
    return kinds


def precision_and_recall(both: int, program: int, reader: int) -> tuple[float, float]:
    """Of the counts that `agreement` returns for a kind; NaN where undefined."""
    return both / (both + program or float("nan")), both / (both + reader or float("nan"))


def _table(counts: dict[str, tuple[int, int, int]]) -> Iterator[str]:
    yield f"{'':14}{'read':>6}{'found':>7}{'precision':>11}{'recall':>8}"
    for kind, (both, program, reader) in counts.items():
        precision, recall = precision_and_recall(both, program, reader)
        yield f"{kind:14}{both + reader:6}{both + program:7}{precision:11.3f}{recall:8.3f}"


def print_references(dataset: str, backbone: str | None) -> None:
    """False claims per answer of the references, on the validation split, with 95 % intervals."""
    from mvaema.evaluation.questions import load_questions
    from mvaema.evaluation.records import score_records, summarize
    from mvaema.evaluation.references import (
        nearest_image_answers,
        random_answers,
        typical_answers,
    )

    questions = load_questions(dataset, "validation", "train")
    asked = questions.train_records, questions.records
    answers = {"typical answer": typical_answers(*asked), "random answer": random_answers(*asked)}
    if backbone:
        embeddings = _embeddings(backbone, questions.train, questions.micrographs)
        answers["nearest image's answer"] = nearest_image_answers(*asked, embeddings)
    print(f"\n{'':24}{'false claims':>22}{'right':>8}{'precision':>11}{'recall':>8}")
    for name, records in answers.items():
        summary = summarize(score_records(records, synonyms=False))["overall"]
        false, facts = summary["scores"]["false_claims"], summary["facts"]["all"]
        interval = f"{false['mean']:.3f} [{false['low']:.3f}, {false['high']:.3f}]"
        print(
            f"{name:24}{interval:>22}{facts['right'] / summary['n']:8.3f}"
            f"{facts['fact_precision']:11.3f}{facts['fact_recall']:8.3f}"
        )


def _embeddings(backbone: str, *splits) -> dict:
    """Image id to the pooled output of an image model."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    processor, model = (
        AutoImageProcessor.from_pretrained(backbone),
        AutoModel.from_pretrained(backbone),
    )
    found = {}
    with torch.inference_mode():
        for micrographs in splits:
            for image_id in micrographs:
                pixels = processor(micrographs[image_id].convert("RGB"), return_tensors="pt")
                found[image_id] = model(**pixels).pooler_output[0].numpy()
    return found


if __name__ == "__main__":
    main()
