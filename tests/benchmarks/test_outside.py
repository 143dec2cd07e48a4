"""Data of the documented shapes, written on the spot; scores against a second calculation."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow
from support.tiny_student import save_tiny_student

from benchmarks.outside import main, score_folder, score_items
from benchmarks.outside_data import (
    read_emvista,
    read_matcha,
    read_microvqa,
    read_table,
    split_options,
)
from mvaema.evaluation.answerers import load_answerer

QUESTIONS = {"caption": "What is seen?", "count": "How many?", "size_nm": "How large?"}


class Speaker:
    """Answers from what it is shown; a blank image is of one grey level."""

    name, questions = "speaker", {}

    def __init__(self):
        self.scales = []

    def answer(self, images, questions, captions, pixel_size_nm, scale_bars):
        self.scales.append((pixel_size_nm[0], scale_bars[0]))
        blank = np.ptp(np.asarray(images[0])) == 0
        seen = {
            "What is seen?": "Round particles on a flat base.",
            "How many?": "About ten to twelve particles lie here; the bar marks 500 nm.",
            "How large?": "The scale bar marks 500 nm. The particles are 90 nm wide.",
        }
        return [["Nothing is visible." if blank else seen[q] for q in questions]]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return load_answerer(str(save_tiny_student(tmp_path_factory.mktemp("s") / "student")))


def picture(seed: int) -> Pillow.Image:
    return Pillow.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48), np.uint8))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    return tmp_path


def write_table(folder, text):
    (folder / "t.csv").write_text(text, encoding="utf-8-sig")
    return folder / "t.csv"


# --- a folder with a table ---


@pytest.mark.slow
def test_counts_and_sizes_are_right_within_the_tolerance(folder):
    table = write_table(
        folder,
        "file_name,caption,count,size_nm,group,pixel_size_nm,scale_bar,operator\n"
        "0.png,Round particles on a flat base.,11,100,a,,500 nm,x\n"
        "1.png,Wires.,20,,a,2.5,,x\n"
        "2.png,,,500,b,,,x\n",
    )
    speaker = Speaker()
    figures = score_folder(speaker, read_table(table, folder), folder, QUESTIONS)
    counts, sizes = (figures[n]["image"]["scores"] for n in ("count", "size_nm"))
    assert figures["count"]["image"]["n"] == 2  # 10–12 for 11 is off by 1/11, for 20 by 18/40
    assert counts["error"]["mean"] == pytest.approx((1 / 11 + 18 / 40) / 2)
    assert counts["right"]["mean"] == 0.5
    # 90 nm for 100 and 500: the length of the scale bar is no size.
    assert sizes["error"]["mean"] == pytest.approx((0.1 + 410 / 500) / 2)
    assert (sizes["right"]["low"], sizes["right"]["high"]) == (0.0, 1.0)  # two groups
    assert figures["caption"]["image"]["scores"]["rouge_l"]["mean"] == pytest.approx(0.5)
    assert figures["caption"]["image"]["scores"]["false_claims"]["n"] == 2
    for column in ("count", "size_nm"):
        blank = figures[column]["blank image"]["scores"]
        assert blank["stated"]["mean"] == blank["right"]["mean"] == 0
        assert figures[column]["difference"]["scores"]["stated"]["difference"] == 1
    assert speaker.scales[::2] == [(None, "500 nm"), (2.5, None), (None, None)]


def test_a_missing_column_is_left_out(folder):
    (folder / "t.jsonl").write_text('{"file_name": "1.png", "count": 9}\n')
    rows = read_table(folder / "t.jsonl", folder)
    figures = score_folder(Speaker(), rows, folder, QUESTIONS, tolerance=0.25)
    assert list(figures) == ["count"] and figures["count"]["image"]["scores"]["right"]["mean"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,count\n0.png,several\n", "row 1: `count` must be a number above 0"),
        ("file_name,count\n0.png,3\n0.png,3\n", "row 2: 0.png occurs twice"),
        ("file_name,count\n9.png,3\n", "row 1: there is no file 9.png"),
        ("file_name,caption\n0.png,\n", "nothing to score"),
        ("image,caption\n0.png,Wires.\n", "row 1 has no `file_name`"),
        ("file_name,caption\n", "has no rows"),
    ],
)
def test_a_bad_table_is_refused_by_row(folder, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(write_table(folder, text), folder)


# --- published sets ---


def write_matcha(folder):
    """Two figures; the second question is about the right half of the first."""
    (folder / "data").mkdir()
    half = [{"x": 24, "y": 0}, {"x": 48, "y": 0}, {"x": 48, "y": 40}, {"x": 24, "y": 40}]
    ask = {"question": "Which?", "options": {"A": "wires", "B": "tips"}, "topic": "shape"}
    rows = [
        {
            "id": "one",
            "images": [{"image_path": "a/x.png", "geometry": half}],
            "vqa": [{**ask, "answer": "B"}, {**ask, "question": "And?", "answer": "A"}],
            "article_info": {"article_name": "paper"},
        },
        {
            "id": "two",
            "images": [{"image_path": "y.png"}] * 2,
            "vqa": [{**ask, "answer": "A"}],
        },
    ]
    lines = "\n".join(map(json.dumps, rows))
    (folder / "data" / "matcha_vqa_inputs.jsonl").write_text(lines)
    with zipfile.ZipFile(folder / "data" / "images.zip", "w") as archive:
        archive.writestr("images/a/x.png", png(0))
        archive.writestr("images/y.png", png(1))
    return folder


def test_matcha(tmp_path):
    items = read_matcha(str(write_matcha(tmp_path)))
    assert [i.reference for i in items] == ["tips", "wires", "wires"]
    assert [i.group for i in items] == ["paper", "paper", "two"]
    assert [i.images for i in items] == [1, 1, 2]
    whole = np.asarray(picture(0))
    assert np.array_equal(np.asarray(items[0].load()), whole[:, 24:])
    assert np.array_equal(np.asarray(items[2].load()), np.asarray(picture(1)))
    assert len(read_matcha(str(tmp_path), limit=1)) == 1


def test_microvqa(tmp_path):
    features = Features(
        {
            "question": Value("string"),
            "choices": List(Value("string")),
            "correct_index": Value("int64"),
            "images_list": List(Image()),
            "key_image": Value("int64"),
            "key_question": Value("int64"),
            "task": Value("int64"),
        }
    )
    rows = [
        {
            "question": "Which organelle?",
            "choices": ["wires", "tips", "films"],
            "correct_index": i,
            "images_list": [picture(i), picture(9)],
            "key_image": 7,
            "key_question": i,
            "task": 1,
        }
        for i in range(2)
    ]
    Dataset.from_list(rows, features).to_parquet(tmp_path / "train-00000.parquet")
    items = read_microvqa(str(tmp_path))
    assert [i.reference for i in items] == ["wires", "tips"]
    assert {i.group for i in items} == {"7"} and items[0].images == 2
    assert np.array_equal(np.asarray(items[1].load()), np.asarray(picture(1)))


def test_emvista(tmp_path):
    features = Features(
        {"images": List(Image()), "problem": Value("string"), "answer": Value("string")}
    )
    texts = [
        ("<image>How dense is it?\nA. dense\nB. sparse", "B"),
        ("How are they arranged? Options: (A) in rows (B) at random", "(A) in rows"),
        ("What is seen?", "Round particles."),
    ]
    rows = [{"images": [picture(0)], "problem": p, "answer": a} for p, a in texts]
    Dataset.from_list(rows, features).to_parquet(tmp_path / "test.parquet")
    first, second, third = read_emvista(str(tmp_path))
    assert (first.question, first.choices, first.true) == (
        "How dense is it?",
        ("dense", "sparse"),
        1,
    )
    assert (second.question, second.reference) == ("How are they arranged?", "in rows")
    assert (third.choices, third.reference) == ((), "Round particles.")


def test_columns_that_are_not_there_are_named(tmp_path):
    Dataset.from_list([{"image": "x", "text": "y"}]).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="no `problem` or `question`; it has image, text"):
        read_emvista(str(tmp_path))


def test_options_need_their_order():
    assert split_options("Phase A. is seen, not B. of C.") == (
        "Phase A. is seen, not B. of C.",
        (),
        (),
    )


def test_choices_are_ranked_by_likelihood(student, tmp_path):
    """The same losses from the model's own forward pass, one choice at a time."""
    items = read_matcha(str(write_matcha(tmp_path)))
    figures = score_items(student, items)["choices"]

    def loss(image, item, choice):
        inputs = student.model.processor(images=[image], text=[item.question], answers=[choice])
        with torch.inference_mode():
            logits = student.model(
                pixel_values=inputs["pixel_values"],
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                labels=inputs["labels"],
            ).logits
        return torch.nn.functional.cross_entropy(logits[0], inputs["labels"][0], reduction="sum")

    grey = Pillow.new("L", (64, 64), 128)
    own, blank, gain = [], [], []
    for item in items:
        shown = torch.tensor([loss(item.load(), item, c) for c in item.choices])
        alone = torch.tensor([loss(grey, item, c) for c in item.choices])
        own.append(float(shown.argmin() == item.true))
        blank.append(float(alone.argmin() == item.true))
        gain.append(float((alone - shown).argmax() == item.true))
    scores = figures["image"]["scores"]
    assert scores["likelihood"]["mean"] == pytest.approx(np.mean(own))
    assert scores["gain"]["mean"] == pytest.approx(np.mean(gain))
    twin = figures["blank image"]["scores"]
    assert twin["likelihood"]["mean"] == pytest.approx(np.mean(blank))
    assert twin["gain"]["mean"] == twin["chance"]["mean"] == 0.5
    assert figures["image"]["clusters"] == 2


def test_chat_models_are_sent_to_the_task(tmp_path):
    with pytest.raises(ValueError, match="inspect_task"):
        score_items(Speaker(), read_matcha(str(write_matcha(tmp_path))))


@pytest.mark.slow
def test_command(student, folder, tmp_path, capsys):
    table = write_table(folder, "file_name,count,group\n0.png,3,a\n1.png,5,b\n")
    output = tmp_path / "figures.json"
    arguments = ["--table", str(table), "--model", student.name, "--output", str(output)]
    assert main(["folder", str(folder), *arguments]) == 0
    assert "## count: 2 answers, 2 micrographs, 2 groups" in capsys.readouterr().out
    assert json.loads(output.read_text())["count"]["image"]["n"] == 2
    assert main(["folder", str(folder), *arguments[:-2], "--caption", "What?"]) == 0
    assert main(["matcha", "--model", student.name, "--source", str(folder)]) == 1
    assert "is no copy of MatCha" in capsys.readouterr().err
