"""One run of a row that answers: built, tuned, asked, scored.

What is special about it: the scores are those of `mvaema eval`, on the same test micrographs and
with the same choices as a student's, beside those of its blind twin and the typical answer.
"""

import shutil
from collections.abc import Callable, Sequence

from accelerate.utils import set_seed

from baselines.answer_figures import answer_figures, questions_of
from baselines.answers import (
    Answers,
    answer_loss,
    training_answers,
    validation_answers,
    validation_loss,
)
from baselines.chat_models import ChatParts
from baselines.outcome import Outcome
from baselines.settings import Run
from baselines.training import Plan, fit
from mvaema.evaluation.answerers import ChatModel
from mvaema.evaluation.chats import Chats
from mvaema.evaluation.collect import collect
from mvaema.evaluation.questions import Questions
from mvaema.evaluation.scores import score
from mvaema.evaluation.wordnet import has_wordnet
from mvaema.training.split import good_answers

NAME = "chat model"  # what the evaluation calls it
ANSWERS_PER_PASS = 8
LONGEST = 256  # tokens of an answer, at most


def train_chat(
    build: Callable[[Sequence[str]], ChatParts],
    run: Run,
    learning_rate: float,
    warmup_steps: int,
) -> Outcome:
    """Build it, train it on the answers of a fold, and score its own.

    Args:
        build: the model, of which what is to be trained has `requires_grad`, and its processor,
            from the questions and answers to train on.

    Raises:
        RowFailed: it cannot be trained.
        DatasetError: there are no answers.
    """
    settings, rows = run.settings, run.data.rows
    set_seed(run.seed)
    answers = training_answers(rows.train, rows.counts, settings.batch_size, run.seed)
    held_out = validation_answers(rows.validation, settings.batch_size)
    questions = questions_of(run)
    model, processor = build(answers.texts())
    chats = Chats(model, processor, NAME)
    history = fit(
        model,
        lambda batch: answer_loss(chats, batch),
        lambda epoch: answers.batches(chats, epoch),
        Plan.of(settings, learning_rate, warmup_steps),
        run.accelerator,
        validation_loss=lambda: validation_loss(chats, held_out),
    )
    longest = longest_answer(chats, answers)
    answerer = ChatModel(model, processor, NAME, longest, ANSWERS_PER_PASS)
    figures = _figures(answerer, questions, run)
    return Outcome(
        figures,
        parameters=sum(p.numel() for p in model.parameters()),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        training={"training": history},
        details={"max_new_tokens": longest, "test_answers": len(questions.records)},
    )


def longest_answer(chats: Chats, answers: Answers) -> int:
    """Tokens of the longest answer to train on, but `LONGEST` at most."""
    said = {a for row in answers.rows.select_columns(["qa"]) for _, a in good_answers(row["qa"])}
    lengths = (len(chats.tokenizer(answer)["input_ids"]) + 1 for answer in said)
    return min(LONGEST, max(lengths, default=LONGEST))


def _figures(answerer: ChatModel, questions: Questions, run: Run) -> dict[str, float | list]:
    """The scores; what they are of (`mvaema/evaluation/collect.py`) stays in the run's folder."""
    folder = run.folder / "scores"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    collected = collect(answerer, questions, folder, classify=False)
    results, _ = score(questions, collected, NAME, synonyms=has_wordnet())
    return answer_figures(results, NAME)
