"""python benchmarks/support_signals.py --model runs/seeing --dataset data/micrographs

Which sign that a student gives tells its good answers from its bad ones? Each answer is the one of
nine candidates (the greedy one and eight draws) with which the others agree most. A good answer has
a METEOR above that of the typical training answer to the question, or makes no false claim.

- matching head, similarity: ITM logit and ITC similarity of image and answer;
- agreement: how much the other candidates agree with the answer;
- likelihood: log-likelihood of the answer per token; image gain: that minus the one with a blank
  image; tokens: fewer tokens, more support;
- question group: how often answers to this question are good, and nothing of the image; all
  together: logistic regression on that and all the others, standardised. Each answer is judged by a
  fit on other groups (ten folds).

An AUROC of 0.5 is chance. Intervals are 95 %, over groups.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).parent.parent))

from candidates_mvaema import agreements
from decoding_mvaema import BLANK_GREY
from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.likelihoods import Scorer
from mvaema.evaluation.questions import Questions, Record, cluster_of, load_questions
from mvaema.evaluation.records import score_records
from mvaema.evaluation.references import typical_answers
from mvaema.evaluation.support import score_support
from mvaema.evaluation.table import Table, markdown
from mvaema.evaluation.texts import LABELS, METEOR, METEOR_NO_SYNONYMS
from mvaema.students.loading import load_student

SIGNALS = ("matching head", "similarity", "agreement", "likelihood", "image gain", "tokens")
DRAWS = 8


def ask(model: MVaEMaModel, scorer: Scorer, row: dict, image: Image.Image, asked: list[str]):
    """The answers to the questions about an image, and their signals (questions, signals)."""
    known = {"pixel_size_nm": row["pixel_size_nm"], "scale_bars": row["scale_bar"]}
    candidates = [model.answer(image, asked, decoding="greedy", **known)]
    for seed in range(DRAWS):
        candidates.append(model.answer(image, asked, decoding="sample", seed=seed, **known))
    answers, agreed = [], []
    for texts in zip(*candidates, strict=True):
        found = agreements(texts)
        answers.append(texts[int(np.argmax(found))] or "?")
        agreed.append(max(found))
    width = None if row["pixel_size_nm"] is None else row["pixel_size_nm"] * image.width
    prompts = [
        model.processor.prompt(question, field_of_view_nm=width, scale_bar=row["scale_bar"])
        for question in asked
    ]
    seen, blank = scorer.see(image), scorer.see(Image.new("L", image.size, BLANK_GREY))
    pairs = list(enumerate(answers))
    own, unseen = (np.array(scorer.losses(shown, prompts, pairs)) for shown in (seen, blank))
    tokens = own[:, 1]
    signals = (
        scorer.matches(seen, answers),
        scorer.similarities(seen, answers),
        agreed,
        -own[:, 0] / tokens,
        (unseen[:, 0] - own[:, 0]) / tokens,
        -tokens,
    )
    return answers, np.stack(signals, axis=1)


def collect(model: MVaEMaModel, questions: Questions) -> tuple[list[Record], np.ndarray]:
    """Answer records, and their signals (records, signals)."""
    scorer, records, signals = Scorer(model), [], []
    of_image: dict[str, list[Record]] = {}
    for record in questions.records:
        of_image.setdefault(record["image_id"], []).append(record)
    for image_id, asked in tqdm(of_image.items(), desc="micrographs"):
        row, image = questions.micrographs.row(image_id), questions.micrographs[image_id]
        answers, found = ask(model, scorer, row, image, [r["question"] for r in asked])
        records += [{**r, "prediction": a} for r, a in zip(asked, answers, strict=True)]
        signals.append(found)
    return records, np.concatenate(signals)


def together(records: list[Record], signals: np.ndarray, good: np.ndarray) -> np.ndarray:
    """The probability that each answer is good, by a fit on the answers of other groups."""
    groups = np.array([cluster_of(record) for record in records])
    asked = np.array([record["question_id"] for record in records])
    inputs = np.column_stack([signals, asked[:, None] == np.unique(asked)])
    folds = GroupKFold(min(10, len(set(groups))))
    fit = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    return cross_val_predict(fit, inputs, good, groups=groups, cv=folds, method="predict_proba")[
        :, 1
    ]


def table(questions: Questions, answered: list[Record], signals: np.ndarray, synonyms: bool):
    """One line per signal, one column per kind of good answer."""
    meteor = METEOR if synonyms else METEOR_NO_SYNONYMS
    scored = score_records(answered, synonyms)
    typical = score_records(typical_answers(questions.train_records, questions.records), synonyms)
    above = {(r["image_id"], r["question_id"]): r["scores"][meteor] for r in typical}
    goods = {
        f"{LABELS[meteor]} above the typical answer's": np.array(
            [r["scores"][meteor] > above[r["image_id"], r["question_id"]] for r in scored]
        ),
        "no false claim": np.array([r["scores"].get("false_claims") == 0 for r in scored]),
    }
    lines = [[name] for name in (*SIGNALS, "question group", "all together")]
    for good in goods.values():
        columns = [*signals.T, None, None]
        if len(set(good.tolist())) == 2:
            columns[-2:] = (together(scored, part, good) for part in (signals[:, :0], signals))
        for line, values in zip(lines, columns, strict=True):
            # A rank in [0, 1] takes the place of a probability: AUROC knows ranks only.
            ranks = None if values is None else values.argsort().argsort() / len(values)
            found = None if ranks is None else score_support(scored, ranks.tolist(), good.tolist())
            line.append("–" if found is None else _cell(found))
    title = f"{len(scored)} answers: AUROC of each signal"
    return Table(title, ["signal", *goods], lines)


def _cell(found: dict) -> str:
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['auroc']:.3f}{interval}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder of a student with a matching head")
    parser.add_argument("--dataset", required=True, help="answered micrograph dataset")
    parser.add_argument("--split", default="validation", help="split to ask about (validation)")
    parser.add_argument("--no_synonyms", action="store_true", help="METEOR without WordNet")
    args = parser.parse_args(argv)
    disable_progress_bar()
    questions = load_questions(args.dataset, args.split, "train")
    model = load_student(args.model).eval()
    answered, signals = collect(model, questions)
    print(markdown(table(questions, answered, signals, not args.no_synonyms)))


if __name__ == "__main__":
    main()
