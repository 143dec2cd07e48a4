"""Training on tiny datasets made on the spot, from images on disk to a loadable student."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import ROOT
from support.micrograph_data import write_dataset
from support.struck_runs import struck
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from mvaema.micrographs.dataset import DatasetError
from mvaema.training.recipe import Recipe
from mvaema.training.run import train
from mvaema.training.run_folder import RunFolder
from mvaema.training.signals import Signals

slow = pytest.mark.slow
TINY = (
    "hidden_size=16,intermediate_size=32,num_image_layers=1,num_text_layers=1,"
    "hidden_dropout_prob=0.1"
)


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data")


@pytest.fixture
def recipe(dataset, tmp_path):
    return make_recipe(dataset, tmp_path / "run")


def make_recipe(dataset: Path, folder: Path) -> Recipe:
    """A run of seconds: the real loop on a model of a few thousand parameters, 2 steps an epoch."""
    return Recipe(
        str(dataset),
        str(folder),
        config_overrides=TINY,
        folds=5,
        epochs=2,
        batch_size=8,
        questions_per_image=2,
        vocab_size=300,
        warmup_steps=2,
        workers=0,
        logging_steps=1,
        sample_micrographs=0,
    )


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def log_of(folder: Path) -> list[dict]:
    """The log without what a clock has written."""
    return [{**record, "seconds": None} for record in lines(folder, "training_log")]


def same_run(a: Path, b: Path) -> bool:
    """Whether two runs agree bit for bit: every step, every epoch, the student."""
    weights = [load_file(folder / "model.safetensors") for folder in (a, b)]
    return (
        lines(a, "steps") == lines(b, "steps")
        and log_of(a) == log_of(b)
        and weights[0].keys() == weights[1].keys()
        and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    )


def test_a_run_ends_in_a_model_repository_and_a_log(recipe):
    folder = train(replace(recipe, sample_micrographs=2))
    log = log_of(folder)
    assert [record["epoch"] for record in log] == [1, 2]
    for record in log:
        for part in (record["train"], record["validation"]):
            assert set(part) == {"loss", "itc_loss", "itm_loss", "lm_loss"}
            assert part["loss"] == pytest.approx(
                part["itc_loss"] + part["itm_loss"] + part["lm_loss"], rel=1e-5
            )
    assert log[1]["train"]["lm_loss"] < log[0]["train"]["lm_loss"]
    steps = lines(folder, "steps")
    assert [s["step"] for s in steps] == [1, 2, 3, 4]
    mean = sum(s["loss"] for s in steps[:2]) / 2
    assert log[0]["train"]["loss"] == pytest.approx(mean, rel=1e-6)
    run = json.loads((folder / "run.json").read_text())
    assert run["finished"] and run["train_micrographs"] + run["validation_micrographs"] == 20
    assert run["versions"]["torch"] == torch.__version__
    samples = lines(folder, "samples")
    assert {s["epoch"] for s in samples} == {1, 2}
    assert len({s["image_id"] for s in samples}) == 2
    assert Image.open(folder / "losses.png").width > 300
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    image = Image.open(Path(recipe.dataset) / "train" / "0.png")
    assert set(model.answer(image, max_new_tokens=3)) == {"basics", "morphology", "surface"}
    assert [file.name for file in folder.glob(".*")] in ([], [".lock"])


@slow
def test_the_same_seed_gives_the_same_run_whatever_the_number_of_workers(recipe, tmp_path):
    first = train(recipe)
    again = train(replace(recipe, output_dir=str(tmp_path / "again"), workers=2))
    assert same_run(first, again)
    other = train(replace(recipe, output_dir=str(tmp_path / "other"), seed=1))
    assert lines(other, "steps")[0] != lines(first, "steps")[0]


@slow
def test_several_threads_give_the_same_run_twice(recipe, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = train(recipe)
        assert same_run(first, train(replace(recipe, output_dir=str(tmp_path / "again"))))
    finally:
        torch.set_num_threads(before)


@slow
def test_sample_answers_leave_no_trace_in_the_run(recipe, tmp_path):
    first = train(recipe)
    again = train(replace(recipe, output_dir=str(tmp_path / "again"), sample_micrographs=2))
    assert lines(first, "steps") == lines(again, "steps")


# ---- interruptions ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpointed(tmp_path_factory):
    """A recipe with a checkpoint after each step, and the folder of its uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    recipe = make_recipe(write_dataset(folder / "data"), folder / "run")
    recipe = replace(recipe, checkpoint_steps=1, sample_micrographs=1)
    return recipe, train(recipe)


@pytest.mark.parametrize(
    ("event", "path", "call"),
    [
        # The folder is about to be claimed.
        pytest.param("open", r"recipe\.yaml-", 1, marks=slow),
        pytest.param("open", r"run\.json-", 1, marks=slow),  # it is claimed; for which data?
        # After the second step, before its record.
        pytest.param("open", r"steps\.jsonl$", 2, marks=slow),
        # In the first checkpoint.
        pytest.param("open", r"\.writing-step-00000001/.*random_states", 1, marks=slow),
        # step-00000002 is about to be replaced
        pytest.param("os.rename", r"\.writing-step-00000002", 2, marks=slow),
        # Validating; all images were read once beforehand.
        pytest.param("open", r"\.png$", 20 + 16 + 2, marks=slow),
        pytest.param("os.mkdir", r"\.saving-", 1, marks=slow),  # the student is about to be saved
        pytest.param(
            "open", r"training_log\.jsonl$", 1, marks=slow
        ),  # it is saved, its epoch is not recorded
        # The epoch is recorded, but in no checkpoint.
        pytest.param("open", r"samples\.jsonl$", 2, marks=slow),
        pytest.param("open", r"losses\.png", 1, marks=slow),  # after everything
    ],
)
def test_a_killed_run_resumes_bit_for_bit(checkpointed, tmp_path, event, path, call):
    recipe, uninterrupted = checkpointed
    recipe = replace(recipe, output_dir=str(tmp_path / "run"))
    status, said = struck("kill", event, path, call, recipe, tmp_path / "output.txt")
    assert status == -signal.SIGKILL, said
    folder = train(recipe)
    assert same_run(folder, uninterrupted)
    assert lines(folder, "samples") == lines(uninterrupted, "samples")


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=slow)])
@pytest.mark.slow
def test_a_signal_ends_the_run_after_its_step(recipe, tmp_path, accumulation):
    recipe = replace(recipe, gradient_accumulation_steps=accumulation)
    status, said = struck("terminate", "open", r"steps\.jsonl$", 1, recipe, tmp_path / "out.txt")
    assert status == 128 + signal.SIGTERM, said
    assert "Interrupted after step 2. Rerun the same command to resume the run in " in said
    assert not json.loads((Path(recipe.output_dir) / "run.json").read_text())["finished"]
    folder = train(replace(recipe, resume=True))
    assert same_run(folder, train(replace(recipe, output_dir=str(tmp_path / "uninterrupted"))))


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_complete_one(checkpointed, tmp_path):
    recipe, uninterrupted = checkpointed
    recipe = replace(recipe, output_dir=str(tmp_path / "run"))
    output = tmp_path / "output.txt"
    status, said = struck("fill disk", "os.mkdir", "writing-step-00000003", 1, recipe, output)
    assert status == 1 and "File too large" in said, said
    assert "WARNING: the checkpoint after step 3 could not be written" in said
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-00000001", "step-00000002"]
    assert same_run(train(recipe), uninterrupted)


@slow
def test_a_finished_run_stays_as_it_is_and_continues_for_more_epochs(recipe, tmp_path):
    folder = train(recipe)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert train(recipe) == folder
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    longer = replace(recipe, epochs=4)
    assert same_run(train(longer), train(replace(longer, output_dir=str(tmp_path / "at once"))))


# ---- whose folder it is -------------------------------------------------------------------------


def test_another_run_is_not_overwritten(recipe, tmp_path):
    folder = train(recipe)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError, match=r"\(learning_rate was 0\.001, is 0\.01\)"):
        train(replace(recipe, learning_rate=0.01))
    other = write_dataset(tmp_path / "other", count=24)
    with pytest.raises(ValueError, match=r"not what the run in .* was started on"):
        train(replace(recipe, dataset=str(other), epochs=3))
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.docx").write_text("")
    with pytest.raises(FileExistsError, match="holds no training run"):
        train(replace(recipe, output_dir=str(tmp_path / "full")))
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train(replace(recipe, output_dir=str(tmp_path / "none"), resume=True))


def test_two_processes_never_train_in_one_folder(recipe):
    with RunFolder(recipe).locked(), pytest.raises(FileExistsError, match="another process"):
        train(recipe)
    assert train(recipe)


@pytest.mark.slow
def test_gradient_accumulation_computes_the_batch_in_parts(recipe, tmp_path):
    """Without ITC and ITM, and answers of one length, the parts' mean is the batch's."""
    alone = f"{TINY},itc_weight=0,itm_weight=0".replace("=0.1", "=0.0")
    recipe = replace(recipe, config_overrides=alone, length_bucketing=False, epochs=3)
    whole = train(recipe)
    parts = train(
        replace(recipe, gradient_accumulation_steps=4, output_dir=str(tmp_path / "parts"))
    )
    assert len(lines(parts, "steps")) == len(lines(whole, "steps")) == 6
    for a, b in zip(log_of(whole), log_of(parts), strict=True):
        assert b["train"]["lm_loss"] == pytest.approx(a["train"]["lm_loss"], rel=0.02)
        assert b["validation"]["lm_loss"] == pytest.approx(a["validation"]["lm_loss"], rel=0.02)


@slow
def test_recomputed_activations_change_nothing(recipe, tmp_path):
    plain = train(recipe)
    spared = train(
        replace(recipe, gradient_checkpointing=True, output_dir=str(tmp_path / "spared"))
    )
    for a, b in zip(lines(plain, "steps"), lines(spared, "steps"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


@pytest.mark.slow
def test_losses_go_to_tensorboard(recipe):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = train(replace(recipe, report_to="tensorboard", sample_micrographs=1))
    found = events.EventAccumulator(str(folder / "mvaema"))
    found.Reload()
    steps = lines(folder, "steps")
    shown = found.Scalars("train/itc_loss")
    assert [e.step for e in shown] == [s["step"] for s in steps]
    assert [e.value for e in shown] == pytest.approx([s["itc_loss"] for s in steps])
    assert {"train/loss", "learning_rate", "validation/loss"} <= set(found.Tags()["scalars"])
    assert found.Tags()["tensors"] == ["samples/text_summary"]


# ---- what it starts from ------------------------------------------------------------------------


def test_any_tokenizer_may_be_given(recipe, processor, tmp_path):
    processor.tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe.tokenizer, recipe.epochs = str(tmp_path / "tokenizer"), 1
    model = AutoModel.from_pretrained(train(recipe), trust_remote_code=True)
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_a_labs_own_categories_become_the_students(recipe, tmp_path):
    own = {"category": "Lot 7", "caption": "A micrograph of lot 7."}
    recipe.dataset, recipe.epochs = str(write_dataset(tmp_path / "own", **own)), 1
    model = AutoModel.from_pretrained(train(recipe), trust_remote_code=True)
    assert model.config.categories == {"Lot 7": "A micrograph of lot 7."}


@pytest.mark.parametrize(
    "start", ["both", *(pytest.param(start, marks=slow) for start in ("vision", "text"))]
)
def test_a_run_may_start_from_pretrained_encoders(recipe, tmp_path, start):
    shapes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}
    vit = ViTModel(ViTConfig(**shapes, num_hidden_layers=1, image_size=224, patch_size=32))
    vit.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(tmp_path / "vit")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *(f"##{w}" for w in words[5:])]))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    bert = BertModel(BertConfig(**shapes, num_hidden_layers=1, vocab_size=len(tokenizer)))
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    recipe.vision = str(tmp_path / "vit") if start != "text" else None
    recipe.text = str(tmp_path / "bert") if start != "vision" else None
    recipe.epochs, recipe.learning_rate = 1, 0.0
    model = AutoModel.from_pretrained(train(recipe), trust_remote_code=True)
    assert set(model.config.questions) == {"basics", "morphology", "surface"}
    if recipe.vision:
        pixels = torch.randn(1, 3, 224, 224)
        expected = vit.eval()(pixels).last_hidden_state
        features = model.image_encoder.features(pixels)
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    if recipe.text:
        old = bert.get_input_embeddings().weight
        assert torch.equal(model.get_input_embeddings().weight[: len(old)], old)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_may_start_from_a_student(recipe, tmp_path, lora):
    base = train(recipe)
    before = load_file(base / "model.safetensors")
    tuned = train(
        replace(
            recipe,
            model=str(base),
            config_overrides=None,
            vocab_size=4096,
            output_dir=str(tmp_path / "tuned"),
            lora=lora,
            merge=lora,
        )
    )
    run = json.loads((tuned / "run.json").read_text())
    assert (run["trainable_parameters"] < run["parameters"]) == lora
    assert (tuned / "adapter_model.safetensors").is_file() == lora
    after = load_file((tuned / "merged" if lora else tuned) / "model.safetensors")
    assert not torch.equal(after["itm_head.weight"], before["itm_head.weight"])
    embeddings = "text_stack.word_embeddings.weight"
    assert torch.equal(after[embeddings], before[embeddings]) == lora
    assert all(
        torch.equal(tensor, load_file(base / "model.safetensors")[n])
        for n, tensor in before.items()
    )


@pytest.mark.slow
def test_a_student_of_another_preset_is_named(recipe, tmp_path):
    base = train(recipe)
    with pytest.raises(ValueError, match=r"not a student of the preset 'small': it differs in "):
        train(
            replace(
                recipe,
                model=str(base),
                config_overrides=None,
                vocab_size=4096,
                preset="small",
                output_dir=str(tmp_path / "tuned"),
            )
        )
    assert not (tmp_path / "tuned").exists()


def test_ablations_are_fields_of_the_configuration(recipe):
    recipe.config_overrides += ",itm_weight=0.0"
    model = AutoModel.from_pretrained(train(recipe), trust_remote_code=True)
    assert model.config.itm_weight == 0
    assert "itm_loss" not in log_of(Path(recipe.output_dir))[0]["train"]


# ---- bad input ----------------------------------------------------------------------------------


def test_bad_datasets_are_named(recipe, tmp_path):
    def refuse(error, match, **fields):
        with pytest.raises(error, match=match):
            train(replace(recipe, output_dir=str(tmp_path / "never"), **fields))
        assert not (tmp_path / "never").exists()

    refuse(DatasetError, "cannot read split 'train' of", dataset=str(tmp_path / "nowhere"))
    refuse(DatasetError, "split 'test'", split="test")
    without = write_dataset(tmp_path / "without", qa=[])
    refuse(DatasetError, "no answers with outcome 'ok'", dataset=str(without))
    refuse(ValueError, "k must be", folds=30)


@pytest.mark.parametrize("strict", [False, True])
def test_an_unreadable_image_is_left_out_or_refused(recipe, strict, capsys):
    image = Path(recipe.dataset) / "train" / "7.png"
    image.write_bytes(image.read_bytes()[:60])
    recipe.strict = strict
    if strict:
        with pytest.raises(DatasetError, match="image7"):
            train(recipe)
        assert not Path(recipe.output_dir).exists()
    else:
        run = json.loads((train(recipe) / "run.json").read_text())
        assert run["skipped_micrographs"] == ["image7"]
        assert run["train_micrographs"] + run["validation_micrographs"] == 19
        assert "1 unreadable image(s) left out: image7" in capsys.readouterr().out


def test_answers_that_are_too_long_are_counted(recipe, tmp_path):
    qa = [
        {"question_id": "basics", "question": "What?", "answer": "grain " * 600, "outcome": "ok"},
        {"question_id": "surface", "question": "How?", "answer": "smooth", "outcome": "ok"},
    ]
    dataset = write_dataset(tmp_path / "long", qa=qa)
    folder = train(replace(recipe, dataset=str(dataset), questions_per_image=3, epochs=1))
    assert log_of(folder)[0]["truncated"] == 16  # each of 2 batches of 8 has 8 of them


# ---- the command --------------------------------------------------------------------------------


def command(launcher: list[str], options: str) -> list[str]:
    tiny = f"--config_overrides {TINY} --folds 5 --batch_size 8 --questions_per_image 2"
    flags = f"{tiny} --vocab_size 300 --workers 0 --logging_steps 1 {options}"
    return [sys.executable, *launcher, str(ROOT / "train.py"), *flags.split()]


@slow
def test_two_ranks_repeat_one_process_over_twenty_steps(tmp_path):
    """`accelerate launch train.py` and torchrun: the losses of each step and the final student."""
    dataset = write_dataset(tmp_path / "data", count=40)
    overrides = TINY.replace("=0.1", "=0.0")  # ranks draw their own dropout
    for name, launcher in (
        ("one", ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        options = f"--dataset {dataset} --output_dir {tmp_path / name} --epochs 5 --stop_after 9"
        run = subprocess.run(
            command(launcher, f"{options} --config_overrides {overrides}"),
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr[-3000:]
    one, two = tmp_path / "one", tmp_path / "two"
    steps = [lines(folder, "steps") for folder in (one, two)]
    assert len(steps[0]) == len(steps[1]) == 20
    for a, b in zip(*steps, strict=True):
        assert b == pytest.approx(a, abs=1e-3)
    for a, b in zip(log_of(one), log_of(two), strict=True):
        assert b["validation"] == pytest.approx(a["validation"], abs=1e-3)
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-3, rtol=1e-2)


@slow
def test_a_run_that_is_killed_again_and_again_ends_as_the_uninterrupted_one(tmp_path):
    """kill -9 in mid-epoch, in validation, while a checkpoint is written: wherever it strikes."""
    dataset = write_dataset(tmp_path / "data", count=24)

    def start(name: str) -> subprocess.Popen:
        options = f"--dataset {dataset} --output_dir {tmp_path / name} --epochs 5"
        line = command([], f"{options} --checkpoint_steps 2 --workers 1 --sample_micrographs 1")
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    killed = tmp_path / "killed"
    for steps in (1, 4, 5, 7, 9):
        process = start("killed")
        while process.poll() is None:
            if (killed / "steps.jsonl").exists() and len(lines(killed, "steps")) >= steps:
                process.kill()
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()[-3000:]
    for name in ("killed", "whole"):
        process = start(name)
        assert process.wait() == 0, process.stderr.read()[-3000:]
    assert same_run(killed, tmp_path / "whole")
    assert lines(killed, "samples") == lines(tmp_path / "whole", "samples")


@slow
def test_a_run_that_met_a_full_disk_resumes(tmp_path):
    """Files may grow to 100 kB only: the log can be written, a checkpoint cannot."""
    dataset = write_dataset(tmp_path / "data", count=24)
    options = f"--dataset {dataset} --output_dir {tmp_path / 'run'} --epochs 3"
    line = command([], f"{options} --checkpoint_steps 2")
    limited = ["bash", "-c", 'ulimit -f 100; trap "" XFSZ; exec "$@"', "bash", *line]
    run = subprocess.run(limited, capture_output=True, text=True)
    assert run.returncode == 1 and "File too large" in run.stderr + run.stdout
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
