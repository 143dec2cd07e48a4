"""What is drawn from a micrograph: questions, captions, statements and views that keep it true."""

import re

import numpy as np
import pytest
from PIL import Image
from support.micrograph_data import write_dataset

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.training.examples import Draws, ExampleDrawer, collate
from mvaema.training.views import TURNED, View, survives_close_up, transposes

SIDE = 90


def row_of(*answers: str, **fields) -> dict:
    """A micrograph with a white square at the upper left, 30 of 90 pixels wide."""
    pixels = np.full((SIDE, SIDE), 60, np.uint8)
    pixels[:30, :30] = 220
    qa = [
        {"question": f"Question {i}?", "answer": a, "outcome": "ok"} for i, a in enumerate(answers)
    ]
    return {
        "image": Image.fromarray(pixels),
        "image_id": "square",
        "caption": None,
        "scale_bar": None,
        "pixel_size_nm": None,
        "qa": qa,
        **fields,
    }


@pytest.fixture
def dataset(tmp_path):
    return load_micrographs(write_dataset(tmp_path / "data"))


def drawn(dataset, epochs=1, **options):
    return examples_of(dataset, Draws(**{"questions_per_image": 9, **options}), epochs)


def examples_of(dataset, draws: Draws | None, epochs=1):
    drawer = ExampleDrawer("Which category?", draws)
    return [drawer(dataset[i], i, e) for e in range(epochs) for i in range(len(dataset))]


def test_refused_answers_never_reach_training(dataset):
    answers = {answer for example in drawn(dataset, 3) for answer in example.answers}
    assert len(answers) == 8 and not any("cannot" in answer for answer in answers)


def test_captions_and_scales_come_and_go_but_never_beside_the_category_question(dataset):
    examples = drawn(dataset, 20, caption_dropout=0.3, scale_dropout=0.8)
    prompts = [p for e in examples if e.view.box is None for p in e.prompts]
    others = [p for p in prompts if "Which category?" not in p]
    for sign, expected in (("electron micrograph", 0.7), ("scale bar marks", 0.2 * 0.65)):
        share = sum(sign in p for p in others) / len(others)
        assert share == pytest.approx(expected, abs=0.05)
    assert not any("electron micrograph" in p for p in prompts if "Which category?" in p)
    quiet = examples_of(dataset, None)
    assert not any("An electron micrograph" in p for e in quiet for p in e.prompts)
    assert all(len(e.prompts) == 4 and e.view == View() for e in quiet)


def test_statements_are_about_the_image_and_never_questions(dataset):
    statements = {text for example in drawn(dataset, 10) for text in example.statements}
    assert not any("?" in statement for statement in statements)
    assert set(CATEGORY_CAPTIONS.values()) & statements
    named = [s for s in statements if any(c in s for c in CATEGORY_CAPTIONS.values())]
    assert set(named) <= set(CATEGORY_CAPTIONS.values()) and any("surface" in s for s in statements)


def test_draws_depend_on_seed_epoch_and_row_alone(dataset):
    def said(seed, epoch, row):
        drawer = ExampleDrawer("Which?", Draws(2, seed=seed))
        example = drawer(dataset[row], row, epoch)
        return example.prompts, example.statements, example.view

    assert said(3, 1, 5) == said(3, 1, 5)
    for changed in ((4, 1, 5), (3, 2, 5), (3, 1, 7)):
        assert said(3, 1, 5) != said(*changed)


def test_a_micrograph_with_fewer_questions_repeats_its_own(processor):
    drawer = ExampleDrawer("Which category?")
    rows = [row_of("one", "two", "three"), row_of("a film")]
    inputs, truncated = collate([drawer(row, 0, 0) for row in rows], processor)
    answers = processor.batch_decode(inputs["labels"].clamp(min=0), skip_special_tokens=True)
    assert answers[3:] == ["a film"] * 3 and truncated == 0


def test_cut_answers_are_counted_in_silence(processor, caplog):
    drawer = ExampleDrawer("Which category?")
    _, truncated = collate([drawer(row_of("long " * 99, "short"), 0, 0)], processor)
    assert truncated == 1 and not caplog.records


def test_bad_rows_are_named(dataset):
    drawer = ExampleDrawer("Which category?", Draws())
    with pytest.raises(DatasetError, match="square has no answer"):
        drawer(row_of("  "), 0, 0)
    with pytest.raises(DatasetError, match=r"square cannot be used.*too small"):
        drawer(row_of("a film", image=Image.new("L", (9, 9))), 0, 0)


# Where the square is said to be, and what else the text says of it.
SAYINGS = {
    "The square lies at the upper left.": {"upper left", "upper right"},
    "The square is at the left, not the right-angled one.": {"left", "right"},
    "A bright square stands out.": {"left", "right"},
}


@pytest.mark.parametrize("saying", SAYINGS)
def test_what_is_said_is_true_of_the_view(saying):
    """The square is looked for in the picture and compared with where the answer puts it."""
    shown = set()
    for epoch in range(60):
        example = ExampleDrawer("Which category?", Draws(seed=1))(row_of(saying), 0, epoch)
        rows, columns = np.nonzero(np.asarray(example.image) > 128)
        height, width = np.array(example.image.size) / 2
        where = (
            "upper" if rows.mean() < height else "lower",
            "left" if columns.mean() < width else "right",
        )
        for text in (*example.answers, *example.statements):
            named = set(re.findall(r"\b(?:upper|lower|left|right)\b(?!-)", text))
            assert named <= set(where), (text, where)
            assert "right-angled" in text or "right-angled" not in saying
        shown.add(where)
    # No view is wasted: whatever is true is shown.
    assert len(shown) == (2 if "upper" in saying else 4)


def test_views_are_limited_by_what_is_named_and_by_nothing_else():
    assert len(transposes(["Smooth grains of about 50 nm."])) == len(TURNED) == 8
    assert len(transposes(["Bright, upright wires.", "No label."])) == 2
    assert len(transposes(["Layers run horizontally."])) == 4
    assert transposes(["The spiral runs clockwise."]) == (None,)
    mirrored = View(Image.Transpose.FLIP_LEFT_RIGHT)
    text = "Left of the RIGHT edge, leftmost, at right angles; residue left behind, left-hand"
    swapped = "Right of the LEFT edge, rightmost, at right angles; residue left behind, right-hand"
    assert mirrored.text(text) == swapped
    assert View(Image.Transpose.FLIP_TOP_BOTTOM).text(text) == text


def test_a_close_up_is_shown_only_with_what_it_cannot_cut_off():
    for text in (
        "The scale bar marks 500 nm.",
        "Seven particles are seen.",
        "About 28 of them are dense.",
        "Each wire is 3 percent of the width.",
        "A white databar lies at the bottom.",
        "Particles gather in the middle.",
        "A single fibre is seen.",
        "Grains are one tenth of the field.",
    ):
        assert not survives_close_up(text), text
    assert survives_close_up("Rough grains of 20 to 40 nm touch, with distinct boundaries.")
    row = row_of("Grains of 20 nm are rough.", "Seven grains are seen.", scale_bar="1 µm")
    closer = whole = 0
    for epoch in range(200):
        example = ExampleDrawer("Which category?", Draws(scale_dropout=0))(row, 0, epoch)
        if example.view.box is None:
            whole += 1
            assert all(p.startswith("The scale bar marks 1 µm.") for p in example.prompts)
        else:
            closer += 1
            assert example.answers == ["Grains of 20 nm are rough."]
            assert not any("scale bar" in p for p in example.prompts)
            assert not any("Seven" in s for s in example.statements)
    assert closer / (closer + whole) == pytest.approx(0.2, abs=0.08)
    never = row_of("Seven grains are seen.")
    views = [ExampleDrawer("Which?", Draws())(never, 0, epoch).view for epoch in range(50)]
    assert all(view.box is None for view in views)


def test_the_field_of_view_is_that_of_the_picture():
    """A ruler of one mark each 10 pixels, 20 nm: marks counted times 20 nm is the width."""
    pixels = np.full((60, 240), 60, np.uint8)
    pixels[:, ::10] = 220
    row = row_of("Lines of 2 nm are seen.", image=Image.fromarray(pixels), pixel_size_nm=2.0)
    drawer = ExampleDrawer("Which category?", Draws(scale_dropout=0))
    seen = set()
    for epoch in range(100):
        example = drawer(row, 0, epoch)
        told = float(re.search(r"field of view is ([\d.]+) nm wide", example.prompts[0])[1])
        line = np.asarray(example.image)[example.image.height // 2] > 128
        if example.image.width > example.image.height:
            marks = np.diff(line.astype(int)).clip(0).sum()
            assert told == pytest.approx(20 * marks, abs=20)
        else:  # a quarter turn: the ruler stands upright
            assert told == pytest.approx(2 * example.image.width, abs=1)
        seen.add((example.view.box is None, example.image.width > example.image.height))
    assert len(seen) == 4


def test_brightness_contrast_and_noise_are_mild_and_grey(processor):
    drawer = ExampleDrawer("Which category?", Draws())
    row = row_of("A film.", image=row_of("A film.")["image"].convert("RGB"))
    noises = []
    for epoch in range(30):
        example = drawer(row, 0, epoch)
        pixels = np.asarray(example.image)
        assert np.ptp(pixels, axis=2).max() == 0
        dark, bright = pixels.min(), pixels.max()
        assert bright - dark > 80  # of 160
        plain = processor(images=example.image)["pixel_values"]
        noisy = collate([example], processor)[0]["pixel_values"]
        again = collate([drawer(row, 0, epoch)], processor)[0]["pixel_values"]
        assert (noisy == again).all() and noisy.abs().max() <= 1
        difference = noisy - plain
        assert (difference[0, 0] == difference[0, 1]).all()
        noises.append(float(difference.std()))
    assert 0.005 < np.mean(noises) < 0.03 and max(noises) < 0.041
    still = ExampleDrawer("Which category?", Draws(augmentation=False))(row, 0, 3)
    assert still.view == View() and np.array_equal(still.image, row["image"])
