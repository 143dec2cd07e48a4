"""A student and a chat model in inspect, which needs an environment of its own:

    python -m venv .venv-inspect
    .venv-inspect/bin/pip install -e ".[inspect,test]"
    .venv-inspect/bin/python -m pytest tests/evaluation/test_inspect_task.py -m "slow or not slow"

Without inspect these tests are skipped.
"""

import base64
import io
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT
from support.tiny_student import MAX_NEW_TOKENS

from mvaema.evaluation.answerers import load_answerer
from mvaema.evaluation.records import score_records, summarize

inspect_ai = pytest.importorskip("inspect_ai")

from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, get_model, modelapi  # noqa: E402

from mvaema.evaluation.inspect_task import check_private, samples, vqa  # noqa: E402


@modelapi(name="elsewhere")
class Elsewhere(ModelAPI):
    """A provider that must not be asked."""

    async def generate(self, input, tools, tool_choice, config):
        raise AssertionError("a micrograph was sent")


def run(task, model, tmp_path, **options):
    (log,) = inspect_ai.eval(task, model, log_dir=str(tmp_path), display="none", **options)
    return log


def pixels(sample) -> np.ndarray:
    uri = sample.input[0].content[0].image
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_a_student_answers_and_is_scored_as_in_eval(student, dataset, questions, tmp_path):
    model = get_model(f"mvaema/{student}", max_new_tokens=MAX_NEW_TOKENS)
    log = run(vqa(str(dataset), synonyms=False), model, tmp_path, limit=4)
    assert log.status == "success"
    asked = questions.records[:4]
    answerer = load_answerer(str(student), max_new_tokens=MAX_NEW_TOKENS, batch_size=1)
    records = []
    for record in asked:
        row = questions.micrographs.row(record["image_id"])
        image = questions.micrographs[record["image_id"]]
        bar = row["scale_bar"]
        ((said,),) = answerer.answer([image], [record["question"]], [None], [None], [bar])
        records.append({**record, "prediction": said})
    assert [s.output.completion for s in log.samples] == [r["prediction"] for r in records]
    expected = summarize(score_records(records, synonyms=False))["overall"]["scores"]
    found = {score.name: score.metrics["mean"].value for score in log.results.scores}
    assert found.keys() == {"meteor_no_synonyms", "rouge_l", "false_claims"}
    assert found == pytest.approx({name: expected[name]["mean"] for name in found})


def test_the_true_answer_of_a_chat_model_scores_best(dataset, tmp_path):
    truth = samples(str(dataset), "validation")[0].target
    output = ModelOutput.from_content("mockllm", truth)
    # Else inspect counts tokens, for which it downloads a vocabulary.
    output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    model = get_model("mockllm/model", custom_outputs=[output])
    log = run(vqa(str(dataset), synonyms=False), model, tmp_path, limit=1)
    assert log.status == "success", log.error
    (scored,) = (sample.scores["answer_scores"] for sample in log.samples)
    assert scored.value["rouge_l"] == 1 and scored.value["false_claims"] == 0
    assert scored.explanation == "no false claim"


def test_the_micrograph_is_in_the_message_or_a_blank_image(dataset, questions):
    seen, blank = (samples(str(dataset), "validation", blank=b)[0] for b in (False, True))
    truth = np.asarray(questions.micrographs[questions.records[0]["image_id"]])
    assert np.array_equal(pixels(seen), truth)
    assert pixels(blank).shape == truth.shape and np.ptp(pixels(blank)) == 0
    assert seen.metadata["group"] and seen.input[0].text.endswith(seen.metadata["question"])


@pytest.mark.parametrize("address", [None, "https://8.8.8.8/v1"])
def test_nothing_leaves_the_network(dataset, tmp_path, address):
    model = get_model("elsewhere/model", base_url=address)
    log = run(vqa(str(dataset), synonyms=False), model, tmp_path, limit=1)
    assert log.status == "error"
    assert "allow_external=true" in log.error.message and "was sent" not in log.error.message


def test_a_server_in_the_network_is_asked():
    check_private(get_model("elsewhere/model", base_url="http://127.0.0.1:8000/v1"))


def test_settings_that_a_student_does_not_take_are_refused(student, dataset, tmp_path):
    model = get_model(f"mvaema/{student}")
    task = vqa(str(dataset), synonyms=False)
    log = run(task, model, tmp_path, limit=1, temperature=0.5)
    assert log.status == "error" and "takes no temperature" in log.error.message


@pytest.mark.slow
@pytest.mark.skipif(
    not entry_points(group="inspect_ai", name="mvaema"),
    reason="inspect finds the task by an entry point: install this version of the project",
)
def test_command(student, dataset, tmp_path):
    options = ["-T", f"dataset={dataset}", "-T", "synonyms=false", "--limit", "1"]
    options += ["--log-dir", str(tmp_path), "--log-format", "json", "--display", "none"]
    # As the docs print it. `python -m inspect_ai` would find the package in the working folder, and
    # inspect names tasks after installed packages only.
    inspect = Path(sys.executable).with_name("inspect")
    command = [str(inspect), "eval", "mvaema/vqa", "--model", f"mvaema/{student}"]
    subprocess.run([*command, *options], check=True, cwd=ROOT)
    (log,) = tmp_path.glob("*.json")
    assert json.loads(log.read_text())["status"] == "success"
