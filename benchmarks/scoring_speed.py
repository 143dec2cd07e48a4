"""How long 10,000 answers take to score, in one process.

    python benchmarks/scoring_speed.py --dataset ../shared/micrographs

Each answer of the dataset is scored against a random other one to the same question, until there
are `--answers` of them. Needs WordNet. The METEOR of the first 1,000 is also timed with NLTK's
own stemmer and WordNet reader, which shows what looking each word up only once brings.
"""

import argparse
import random
import time
import warnings

from datasets import concatenate_datasets, load_dataset
from nltk.translate.meteor_score import single_meteor_score

from mvaema.evaluation.references import random_answers
from mvaema.evaluation.scores import compare, records_from_dataset, score_records, summarize
from mvaema.evaluation.wordnet import ensure_wordnet

warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="a folder that imagefolder can load")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
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
        "METEOR of 1,000 as NLTK has it",
        lambda: [single_meteor_score(r, p, wordnet=reader) for r, p in pairs],
    )


def timed(what: str, work):
    start = time.perf_counter()
    result = work()
    print(f"{what}: {time.perf_counter() - start:.1f} s")
    return result


if __name__ == "__main__":
    main()
