"""Rows that answer: what is trained, on which tokens, and how it is scored."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from baselines import answering
from baselines.answering import RANDOM, RANDOM_RATE, ROWS
from baselines.answers import COUNTED, answer_loss, training_answers, validation_answers
from baselines.data import Data
from baselines.registry import with_weights
from baselines.settings import Run, Settings
from baselines.tuning import longest_answer, train_chat
from mvaema.evaluation.chat_likelihoods import ChatScorer
from mvaema.evaluation.chats import IGNORED, Chats
from mvaema.files import read_json_lines
from mvaema.micrographs.schema import FEATURES
from mvaema.synthetic.dataset import SyntheticSplit, rows

NAMES = [row.name for row in ROWS]
ASKED = ("basics", "surface")
# By their names, what each row trains.
TRAINED = {
    "instructblip": {"qformer", "query_tokens", "language_projection"},
    "llava": {"multi_modal_projector", "language_model", "lm_head"},
    "minigpt-4": {"language_projection"},
}


def row_of(name: str):
    (row,) = [row for row in ROWS if row.name == name]
    return with_weights(row, RANDOM)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The folder of 18 simulated micrographs of nine scenes, with two questions each."""
    split = SyntheticSplit(seed=3, size=96, categories=("Nanowires", "Particles", "Tips"))
    made = [
        {**row, "qa": [qa for qa in row["qa"] if qa["question_id"] in ASKED]}
        for row in rows(split, 18, workers=0)
    ]
    folder = tmp_path_factory.mktemp("simulated")
    columns = {name: [row.get(name) for row in made] for name in FEATURES}
    data = datasets.Dataset.from_dict(columns, features=FEATURES)
    data.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


@pytest.fixture
def run(simulated, tmp_path) -> Run:
    settings = Settings(str(simulated), folds=3, image_size=96, batch_size=8, epochs=4)
    return Run(settings, Data(settings).fold(0), 0, tmp_path, Accelerator(cpu=True))


def test_rows_are_the_papers(all_of=ROWS):
    assert {row.name for row in all_of if row.table == 1} == set(TRAINED)
    for row in all_of:
        assert row.pretrained and row.pretrained != RANDOM
        tiny = with_weights(row, RANDOM)
        assert tiny.learning_rate == RANDOM_RATE > row.learning_rate


def test_batches_hold_the_answers_behind_their_prompts(run):
    chats, answers = chats_and_answers("llava", run)
    seen = 0
    for batch in answers.batches(chats, epoch=1):
        seen += len(batch[COUNTED])
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            kept = labels != IGNORED
            assert (ids[kept] == labels[kept]).all()
            text = chats.tokenizer.decode(labels[kept])
            place = int(kept.nonzero()[0])
            before = chats.tokenizer.decode(ids[:place], skip_special_tokens=True)
            assert text.endswith("[EOS]") and before.endswith("ASSISTANT:")
            assert (chats.tokenizer.decode(ids[place : place + int(kept.sum())])) == text
    assert seen == len(answers.rows)
    first, again = ([b["labels"] for b in answers.batches(chats, 1)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_validation_asks_the_same_each_time_and_tells_no_caption(run):
    chats, _ = chats_and_answers("llava", run)
    held_out = validation_answers(run.data.rows.validation, 8)
    (first, *_), (again, *_) = (list(held_out.plain_batches(chats)) for _ in range(2))
    assert torch.equal(first["input_ids"], again["input_ids"])
    prompts = chats.tokenizer.batch_decode(first["input_ids"].masked_fill(first["labels"] > 0, 0))
    assert not any("An electron micrograph of" in prompt for prompt in prompts)


def chats_and_answers(name: str, run: Run):
    answers = training_answers(run.data.rows.train, run.data.rows.counts, 8, run.seed)
    torch.manual_seed(0)
    return Chats(*row_of(name).make(answers.texts(), 96), name), answers


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_what_is_to_be_trained_and_nothing_else(run, name):
    chats, answers = chats_and_answers(name, run)
    answer_loss(chats, next(iter(answers.batches(chats, 0)))).backward()
    for parameter_name, parameter in chats.model.named_parameters():
        parts = set(parameter_name.split("."))
        wanted = parts & TRAINED[name] if name in TRAINED else "lora_" in parameter_name
        assert parameter.requires_grad == bool(wanted), parameter_name
        assert (parameter.grad is not None) == bool(wanted), parameter_name
    assert any(p.grad is not None and p.grad.any() for p in chats.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_models_of_random_weights_see(run, name):
    chats, answers = chats_and_answers(name, run)
    chats.model.eval()
    image = answers.drawer(answers.rows[0], 0, 0).image
    losses = [
        ChatScorer(chats, 4).losses(shown, ["What is it?"], [(0, "Wires on a film.")])[0][0]
        for shown in (image, image.rotate(90), Image.new("L", image.size, 128))
    ]
    assert len({round(loss, 3) for loss in losses}) == 3, losses


def test_a_model_of_another_kind_is_refused(run):
    row = dataclasses.replace(row_of("llava"), trained=("qformer",))
    with pytest.raises(ValueError, match=r"Llava.* has no part named qformer.*chat-lora"):
        row.make(["a text"], 96)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_row_learns_answers_and_is_scored(run, name):
    row, made = row_of(name), []

    def build(texts):
        parts = row.make(texts, run.settings.image_size)
        made.append((parts, {n: p.clone() for n, p in parts.model.named_parameters()}))
        return parts

    outcome = train_chat(build, run, row.learning_rate, row.warmup_steps)
    ((parts, before),) = made
    for parameter_name, parameter in parts.model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[parameter_name]), parameter_name
    trained = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    assert 0 < trained == outcome.trainable_parameters < outcome.parameters
    assert any(
        not torch.equal(p, before[n]) for n, p in parts.model.named_parameters() if p.requires_grad
    )
    history = outcome.training["training"]
    assert history.log[-1]["train"] < history.log[0]["train"]
    assert history.log[-1]["validation"] < history.log[0]["validation"] * 1.001
    assert history.micrographs == 4 * len(run.data.rows.train)

    answers = read_json_lines(run.folder / "scores" / "answers.jsonl")
    asked = len(run.data.rows.test) * len(ASKED)
    assert outcome.details["test_answers"] == asked
    assert {r["condition"] for r in answers} >= {"image", "blank image", "another micrograph"}
    assert len(answers) == asked * len({r["condition"] for r in answers})
    wanted = {"bleu_2", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "false_claims", "image_gain"}
    wanted |= {"own_gain", "blind_bleu_2", "typical_bleu_2", "image_gain_interval"}
    assert wanted <= outcome.figures.keys()
    numbers = [v for v in outcome.figures.values() if isinstance(v, float)]
    assert np.isfinite(numbers).all()


@pytest.mark.slow
def test_a_row_is_the_same_under_a_seed(run):
    found = [row_of("llava").train_and_score(run) for _ in range(2)]
    assert found[0].figures == found[1].figures
    logs = [
        [(e["train"], e["validation"]) for e in outcome.training["training"].log]
        for outcome in found
    ]
    assert logs[0] == logs[1]


def test_answers_are_as_long_as_those_of_training(run):
    chats, answers = chats_and_answers("llava", run)
    said = [qa["answer"] for row in answers.rows for qa in row["qa"]]
    longest = max(len(chats.tokenizer(text)["input_ids"]) for text in said) + 1
    assert longest_answer(chats, answers) == longest


@pytest.mark.slow
def test_minigpt4_is_put_together_of_two_models(run, tmp_path):
    texts = ["Small wires.", "Large particles.", "What is it?"] * 4
    eyes, _ = row_of("minigpt-4").make(texts, 96)
    torch.nn.init.normal_(eyes.query_tokens)
    processor = row_of("minigpt-4").make(texts, 96).processor
    eyes.save_pretrained(tmp_path / "eyes")
    processor.save_pretrained(tmp_path / "eyes")
    language = row_of("llava").make(texts, 96)
    from transformers import LlamaForCausalLM

    torch.manual_seed(5)
    decoder = LlamaForCausalLM(language.model.config.text_config)
    decoder.save_pretrained(tmp_path / "decoder")
    language.processor.tokenizer.save_pretrained(tmp_path / "decoder")

    (row,) = [row for row in answering.ROWS if row.name == "minigpt-4"]
    both = with_weights(row, f"{tmp_path / 'eyes'}+{tmp_path / 'decoder'}")
    model, _ = both.make([], 96)
    for part in ("vision_model", "qformer"):
        ours, theirs = (getattr(m, part).state_dict() for m in (model, eyes))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(model.query_tokens, eyes.query_tokens)
    head = model.language_model.lm_head.weight
    assert torch.equal(head[: len(decoder.lm_head.weight)], decoder.lm_head.weight)
    outcome = both.train_and_score(run)
    assert outcome.trainable_parameters == sum(
        p.numel() for p in model.language_projection.parameters()
    )
    assert "image_gain" in outcome.figures
