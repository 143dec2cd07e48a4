"""python benchmarks/scoring_speed.py --dataset data/micrographs

How long 10,000 answers take to score in one process. Each answer of the dataset is scored against
another random answer to the same question, until there are `--answers` of them. METEOR of the first
1,000 is also timed with NLTK's own stemmer and WordNet reader, to show what remembering each word
saves. Needs WordNet.
"""

import argparse
import random
import time
import warnings
from collections.abc import Callable

from datasets import concatenate_datasets, load_dataset
from nltk.translate.meteor_score import single_meteor_score

from mvaema.evaluation.questions import records_from_dataset
from mvaema.evaluation.records import compare, score_records, summarize
from mvaema.evaluation.references import random_answers
from mvaema.evaluation.wordnet import ensure_wordnet

warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--dataset", required=True, help="folder with metadata.jsonl and images")
    parser.add_argument("--answers", type=int, default=10_000, help="answers to score (10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random answers (0)")
    args = parser.parse_args()

    dataset = concatenate_datasets(
        list(load_dataset("imagefolder", data_dir=args.dataset).values())
    )
    answers = records_from_dataset(dataset)
    rng = random.Random(args.seed)
    records = [
        {**record, "image_id": f"{record['image_id']}-{i}"}
        for i in range(-(-args.answers // len(answers)))
        for record in rng.sample(answers, len(answers))
    ][: args.answers]
    first, second = (random_answers(answers, records, seed) for seed in (args.seed, args.seed + 1))
    words = sum(len(r["prediction"].split()) for r in first) / len(first)
    print(f"{len(first)} answers of {words:.1f} words on average")

    reader = timed("load WordNet", ensure_wordnet)
    scored = timed("score", lambda: score_records(first))
    other = score_records(second)
    timed("summarize, 1,000 resamples", lambda: summarize(scored))
    timed("compare, 9,999 permutations", lambda: compare(scored, other))

    pairs = [(r["reference"].split(), r["prediction"].split()) for r in first[:1000]]
    timed(
        "METEOR of 1,000 by NLTK alone",
        lambda: [single_meteor_score(r, p, wordnet=reader) for r, p in pairs],
    )


def timed(what: str, work: Callable):
    start = time.perf_counter()
    result = work()
    print(f"{what}: {time.perf_counter() - start:.1f} s")
    return result


if __name__ == "__main__":
    main()
