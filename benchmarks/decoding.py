"""python benchmarks/decoding.py --model runs/first --dataset data/answered --output decoded.jsonl

Which decoding suits a student: its scores, how it repeats itself, what it says to a blank image,
and what it costs. Micrographs are asked one by one, all their questions at once, as a person would.
Every decoding answers about a micrograph before the next comes, so all run under the same load.
Differences are from greedy answers, with 95 % intervals over groups. Rerun the same command to
resume; the costs of what was added in another run were measured under another load.

- repeated: share of an answer's bigrams that it has said before (Welleck et al. 2020, seq-rep-2);
- distinct: different bigrams in all answers, of all bigrams (Li et al. 2016, distinct-2);
- support: mean probability, by the matching head, that an answer is true of its micrograph. What
  "rerank" decodes is chosen by it, so there it is no evidence;
- cost: seconds per answer, of those of greedy answers; wait: median seconds for a micrograph.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).parent.parent))

from decoding_mvaema import BLANK_GREY
from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.questions import Micrographs, Record, key_of, records_from_dataset
from mvaema.evaluation.records import compare, score_records
from mvaema.evaluation.table import Table, markdown
from mvaema.evaluation.texts import LABELS, METEOR, METEOR_NO_SYNONYMS
from mvaema.files import JsonLines
from mvaema.micrographs.dataset import load_micrographs
from mvaema.students.loading import load_student, weights_fingerprint

GREEDY = "greedy"
VARIANTS: dict[str, dict] = {
    GREEDY: {"decoding": "greedy"},
    "greedy, no repeated trigram": {"decoding": "greedy", "no_repeat_ngram_size": 3},
    "greedy, repetition penalty 1.2": {"decoding": "greedy", "repetition_penalty": 1.2},
    "beam": {"decoding": "beam"},
    "sample": {"decoding": "sample"},
    "consensus": {"decoding": "consensus"},
    "consensus of 17": {"decoding": "consensus", "num_return_sequences": 16},
    "contrast": {"decoding": "contrast"},
    "contrast, scale 1.5": {"decoding": "contrast", "guidance_scale": 1.5},
    "rerank": {"decoding": "rerank"},
    "consensus+itm": {"decoding": "consensus+itm"},
}


def repeated_bigrams(text: str) -> float:
    """The share of a text's bigrams that it has said before."""
    bigrams = list(itertools.pairwise(text.split()))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def distinct_bigrams(texts: Sequence[str]) -> float:
    """Different bigrams of all bigrams."""
    bigrams = [pair for text in texts for pair in itertools.pairwise(text.split())]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def ask(model: MVaEMaModel, row: dict, image: Image.Image, asked: list[str], options: dict) -> dict:
    """The answers about a micrograph and about a blank one, support, and the seconds for each."""
    known = {"pixel_size_nm": row["pixel_size_nm"], "scale_bars": row["scale_bar"], **options}
    started = time.perf_counter()
    answers = model.answer(image, asked, **known)
    seconds = time.perf_counter() - started
    blank = model.answer(Image.new("L", image.size, BLANK_GREY), asked, **known)
    support = model.support(image, answers) if model.config.itm_weight else None
    return {"answers": answers, "blank": blank, "support": support, "seconds": seconds}


def collect(
    model: MVaEMaModel, micrographs: Micrographs, records: list[Record], args
) -> list[dict]:
    """One row for each micrograph and variant; those in `args.output` are not asked again."""
    lines, weights = JsonLines(args.output), weights_fingerprint(model)
    if any(row["weights"] != weights for row in lines.rows):
        sys.exit(f"error: {args.output} has answers of other weights; choose another --output.")
    of_image: dict[str, list[Record]] = {}
    for record in records:
        of_image.setdefault(record["image_id"], []).append(record)
    for image_id in tqdm(of_image, desc="micrographs"):
        done = {r["variant"] for r in lines.rows if r["image_id"] == image_id}
        row, image = micrographs.row(image_id), micrographs[image_id]
        asked = [record["question"] for record in of_image[image_id]]
        for variant in args.variants:
            if variant not in done:
                found = ask(model, row, image, asked, VARIANTS[variant])
                lines.append(
                    [{"image_id": image_id, "variant": variant, "weights": weights, **found}]
                )
    return [r for r in lines.rows if r["image_id"] in of_image]


def scored(records: list[Record], rows: list[dict], field: str, synonyms: bool) -> list[Record]:
    """The records with the answers of one variant, scored."""
    said = answers_of(records, rows, field)
    return score_records(({**r, "prediction": said[key_of(r)]} for r in records), synonyms)


def answers_of(records: list[Record], rows: list[dict], field: str) -> dict[tuple[str, str], str]:
    remaining: dict[str, Iterator[str]] = {row["image_id"]: iter(row[field]) for row in rows}
    return {key_of(record): next(remaining[record["image_id"]]) for record in records}


def table(
    records: list[Record], rows: list[dict], variants: Sequence[str], synonyms: bool
) -> Table:
    """One line per variant."""
    of = {name: [r for r in rows if r["variant"] == name] for name in variants}
    seconds = {name: np.array([r["seconds"] for r in of[name]]) for name in variants}
    meteor = METEOR if synonyms else METEOR_NO_SYNONYMS
    metrics = (meteor, "rouge_l", "bleu_4")
    greedy = scored(records, of[GREEDY], "answers", synonyms)
    lines = []
    for name in variants:
        answered = scored(records, of[name], "answers", synonyms)
        blank = compare(scored(records, of[name], "blank", synonyms), answered)["scores"][meteor]
        against = compare(greedy, answered)["scores"]
        cells = [name]
        for metric in metrics:
            found = against[metric]
            gain = f" ({_signed(found)})" if name != GREEDY else ""
            cells.append(f"{found['second']:.3f}{gain}")
        texts = [r["prediction"] for r in answered]
        support = [p for r in of[name] for p in r["support"] or ()]
        cells += [
            f"{blank['first']:.3f} ({_signed(blank)})",
            f"{np.mean([repeated_bigrams(text) for text in texts]):.3f}",
            f"{distinct_bigrams(texts):.3f}",
            f"{np.mean([len(text.split()) for text in texts]):.1f}",
            f"{np.mean(support):.3f}" if support else "–",
            f"{seconds[name].sum() / seconds[GREEDY].sum():.2f} ×",
            f"{np.median(seconds[name]):.2f} s",
        ]
        lines.append(cells)
    header = [
        "decoding",
        *(LABELS[m] for m in metrics),
        "METEOR, blank image (gain by the image)",
        "repeated",
    ]
    header += ["distinct", "words", "support", "cost", "wait"]
    asked, images = len(records), len({r["image_id"] for r in records})
    return Table(f"{asked} answers about {images} micrographs", header, lines)


def _signed(found: dict) -> str:
    interval = "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
    return f"{found['difference']:+.3f}{interval}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder of a student")
    parser.add_argument("--dataset", required=True, help="answered micrograph dataset")
    parser.add_argument("--split", default="validation", help="split to ask about (validation)")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write")
    parser.add_argument("--micrographs", type=int, help="ask about the first ones only")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--no_synonyms", action="store_true", help="METEOR without WordNet")
    args = parser.parse_args(argv)
    args.variants = list(dict.fromkeys([GREEDY, *args.variants]))
    disable_progress_bar()

    dataset = load_micrographs(args.dataset, args.split)
    if args.micrographs:
        dataset = dataset.select(range(min(args.micrographs, len(dataset))))
    records = records_from_dataset(dataset)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = load_student(args.model).to(device).eval()
    if not model.config.itm_weight:
        args.variants = [v for v in args.variants if v not in ("rerank", "consensus+itm")]
    rows = collect(model, Micrographs(dataset, args.split), records, args)
    print(markdown(table(records, rows, args.variants, not args.no_synonyms)))


if __name__ == "__main__":
    main()
