"""The student of this repository: loaded as a stranger would, small, nameless, and not blind."""

import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from support import ROOT

from modeling_mvaema import MVaEMaModel
from mvaema.students.shipped import shipped_student
from mvaema.synthetic.dataset import SyntheticSplit, rows

WEIGHTS = ROOT / "model.safetensors"
FILES = (
    WEIGHTS,
    *(ROOT / f"{name}.json" for name in ("config", "generation_config", "processor_config")),
    *(ROOT / f"{name}.json" for name in ("tokenizer", "tokenizer_config")),
    ROOT / "chat_template.jinja",
)


@pytest.mark.slow
def test_another_process_loads_it_offline_with_its_own_code(tmp_path):
    program = (
        "import json, sys\n"
        "from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "image = sys.argv[1] + '/docs/example.png'\n"
        "print(json.dumps([type(model).__module__, model.answer(image), model.classify(image)]))\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")
    }
    run = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)],
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    module, answers, ranked = json.loads(run.stdout.splitlines()[-1])
    assert module.startswith("transformers_modules.")
    assert len(answers) == 10 and all(len(answer.split()) >= 3 for answer in answers.values())
    assert len(ranked) == 10 and sum(ranked.values()) == pytest.approx(1, abs=1e-3)


def test_it_is_small_and_names_nothing_of_where_it_was_trained():
    assert sum(file.stat().st_size for file in FILES) < 25e6
    for file in FILES[1:]:
        text = file.read_text(encoding="utf-8")
        assert str(ROOT.parent) not in text and "/tmp" not in text, file.name
    assert not list(ROOT.glob("*.bin")) and not list(ROOT.glob("*.pt"))


@pytest.mark.slow
def test_it_tells_simulated_micrographs_apart_and_blank_ones_not():
    """Scenes of a seed that it was not trained on; chance is one in ten."""
    made = list(rows(SyntheticSplit(seed=1234), 60, workers=0))
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in made]
    truth = [row["category"] for row in made]
    model = MVaEMaModel.from_pretrained(ROOT)

    def share_right(shown):
        ranked = model.classify(shown, by="itc+itm")
        return sum(next(iter(row)) == t for row, t in zip(ranked, truth, strict=True)) / len(made)

    blank = [Image.new("L", image.size, 128) for image in images]
    assert share_right(images) > 0.5 > 0.25 > share_right(blank)


def test_commands_find_it_and_say_how_to_get_one_where_there_is_none(tmp_path):
    assert shipped_student() == str(ROOT)
    with pytest.raises(FileNotFoundError, match="--model"):
        shipped_student(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileNotFoundError, match="mvaema demo"):
        shipped_student(tmp_path)
