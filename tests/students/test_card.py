"""The model card: what a run has written down, and no place in the lab."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from mvaema.students.card import write_card

SETTINGS = {
    "dataset": "/SECRETLAB/wafers",
    "output_dir": "runs/SECRETCUSTOMER",
    "model": None,
    "text": "lab/encoder",
    "learning_rate": 0.001,
    "push_to_hub": "SECRETLAB/student",
    "public": False,
}
EPOCHS = [
    {"epoch": e, "validation": {"loss": x, "itc_loss": 1.25, "itm_loss": 0.5, "lm_loss": x - 1.75}}
    for e, x in ((1, 5.0), (2, 4.0), (3, 4.5))
]
SIGHT = {
    "image_gain_per_token": {"n": 9, "mean": 0.25, "low": 0.2, "high": 0.3},
    "answer_itm_top_1": {"n": 9, "mean": 0.5, "low": None, "high": None},
    "answer_chance_top_1": {"n": 9, "mean": 0.125, "low": 0.125, "high": 0.125},
}
METRICS = {"bleu_2": "BLEU-2", "bleu_4": "BLEU-4", "rouge_1": "ROUGE-1", "meteor": "METEOR"}


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a finished run, as far as a card reads it."""
    facts = {
        "git_commit": "c0ffee",
        "python": "3.11",
        "versions": {"torch": "2.13"},
        "train_micrographs": 1234,
        "validation_micrographs": 56,
        "parameters": 98765,
        "trainable_parameters": 4321,
        "hub_ids": {"text": "lab/encoder"},
    }
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS))
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "training_log.jsonl").write_text("\n".join(map(json.dumps, EPOCHS)))
    return folder


def publish_dataset(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    facts["hub_ids"]["dataset"] = "lab/micrographs"
    (run / "run.json").write_text(json.dumps(facts))
    (run / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS | {"dataset": "lab/micrographs"}))


def write_results(folder: Path, **changes) -> Path:
    """The results of an evaluation, as far as a card reads them."""
    scores = {name: {"mean": 0.1 * i} for i, name in enumerate(METRICS)}
    summary = {"overall": {"n": 4000, "images": 400, "scores": scores}}
    names = ("SECRET", "SECRET, blank image", "SECRETOTHER", "typical answer", "random answer")
    results = {
        "dataset": SETTINGS["dataset"],
        "split": "validation",
        "metrics": METRICS,
        "answers": dict.fromkeys(names, summary),
        "sight": {name: {"overall": {"scores": SIGHT}} for name in names[:3]},
        "support": {"METEOR above the typical answer's": {"auroc": 0.75, "low": 0.7, "high": 0.8}},
        "classification": {"ITC": {"top_1": 0.625, "macro_f1": 0.5}, "chance": {"top_1": 0.1}},
        **changes,
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def load(folder: Path) -> ModelCard:
    card = ModelCard.load(folder / "README.md")
    assert "SECRET" not in card.content
    return card


def test_a_card_tells_what_a_run_has_written_down(run):
    write_card(run, "lab/student")
    card = load(run)
    assert card.data.license is None and "Not stated. Ask the owner" in card.text
    assert 'AutoModel.from_pretrained("lab/student", trust_remote_code=True)' in card.text
    assert "98,765 parameters, 4,321 of them trained." in card.text
    assert "1,234 micrographs for training, 56 of other specimens" in card.text
    assert "losses of epoch 2, whose weights these are: ITC 1.250, ITM 0.500, LM 2.250" in card.text
    recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert recipe == {"dataset": "private", "text": "lab/encoder", "learning_rate": 0.001}
    assert "torch 2.13; MVaEMa at commit c0ffee" in card.text
    assert {e.dataset_type for e in card.data.eval_results} == {"private"}


def test_a_dataset_on_the_hub_is_named(run):
    publish_dataset(run)
    write_card(run)
    card = load(run)
    assert card.data.datasets == ["lab/micrographs"]
    assert "(https://huggingface.co/datasets/lab/micrographs)" in card.text
    assert {e.dataset_type for e in card.data.eval_results} == {"lab/micrographs"}


def test_the_figures_of_an_evaluation(run, tmp_path):
    write_card(run, "lab/student", "cc-by-4.0", write_results(tmp_path / "report"))
    card = load(run)
    assert card.data.license == "cc-by-4.0" and "## Licence" not in card.text
    found = {e.metric_name: (e.metric_type, e.metric_value) for e in card.data.eval_results}
    assert found["ROUGE-1"] == ("rouge", 0.2) and found["top 1 by ITC"] == ("accuracy", 0.625)
    assert found["macro f1 by ITC"] == ("f1", 0.5) and not any("chance" in name for name in found)
    assert found["validation loss, LM"] == ("loss", 2.25)
    assert found["image gain, nats per token"] == ("image_gain_per_token", 0.25)
    assert found["true answer by ITM"] == ("accuracy", 0.5)
    assert "(chance 0.125)" in card.text
    assert "answer's\" with AUROC 0.75 [0.70, 0.80] (chance 0.5)." in card.text
    assert "4,000 questions about 400 micrographs" in card.text
    for row in (
        "| | BLEU-2 | BLEU-4 | METEOR |",
        "| this student | 0.000 | 0.100 | 0.300 |",
        "| shown | image gain, nats per token | true answer by ITM |\n|---|---|---|",
        "| this student, blank image | 0.250 [0.200, 0.300] | 0.500 |",
        "| this student, blank image | 0.000 | 0.100 | 0.300 |\n| typical answer |",
    ):
        assert row in card.text
    assert "Correct categories: by ITC 0.62, chance 0.10." in card.text


def test_figures_on_another_dataset_do_not_name_the_one_trained_on(run, tmp_path):
    publish_dataset(run)
    write_card(run, report=write_results(tmp_path / "report", dataset="/SECRETLAB/others"))
    datasets = {e.metric_name: e.dataset_type for e in load(run).data.eval_results}
    assert datasets["BLEU-2"] == "private"
    assert datasets["validation loss, LM"] == "lab/micrographs"


def test_adapters_name_their_base_if_it_is_public(run):
    config = {"peft_type": "LORA", "base_model_name_or_path": "lab/student"}
    (run / "adapter_config.json").write_text(json.dumps(config))
    write_card(run, "lab/adapted")
    card = load(run)
    assert card.data.base_model == "lab/student" and card.data.library_name == "peft"
    config["base_model_name_or_path"] = "/SECRETLAB/student"
    (run / "adapter_config.json").write_text(json.dumps(config))
    write_card(run, "lab/adapted")
    assert load(run).data.base_model is None


def test_a_card_of_a_bare_repository(tmp_path):
    write_card(tmp_path)
    card = load(tmp_path)
    assert "Not measured." in card.text and "## Recipe" not in card.text


def test_an_unfinished_evaluation_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished evaluation"):
        write_card(run, report=tmp_path)
    assert not (run / "README.md").exists()
