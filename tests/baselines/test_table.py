"""Tables of results that are written by hand, and the picture's labels."""

import json

import pytest

from baselines.__main__ import main
from baselines.settings import Settings
from baselines.table import accuracy_against_cost, read_results, tables


def write(folder, row, figures, seed=0, **more):
    result = {
        "row": row,
        "title": row.title(),
        "table": 2,
        "group": "ConvNets",
        "paper": {"top_1": 0.5, "top_5": 0.9},
        "note": "",
        "fold": 0,
        "seed": seed,
        "figures": figures,
        "parameters": 1_500_000,
        "learning_rate": 1e-3,
        "pretrained": None,
        "training": {
            "training": {"processor_seconds": 90, "seconds": 60, "epochs": 3, "steps": 40}
        },
        "details": {"gflop": 0.25},
        "device": "cpu",
        "machine": "a machine",
        "threads": 1,
        "date": "2026-11-26",
    }
    file = folder / row / f"fold-0/seed-{seed}/result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(result | more))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(Settings("data").compared()))
    return tmp_path


def cells(text, title):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, row = (next(x for x in lines if x.startswith(f"| {name} |")) for name in ("Row", title))
    return dict(
        zip(
            *([cell.strip() for cell in x.strip("|").split("|")] for x in (header, row)),
            strict=True,
        )
    )


def test_one_run_has_its_interval_and_several_their_range(folder):
    write(folder, "resnet-18", {"top_1": 0.6, "top_1_interval": [0.4, 0.8], "macro_f1": 0.5})
    text = tables(*read_results(folder), folder)
    assert cells(text, "Resnet-18")["Top-1"] == "0.600 [0.400, 0.800]"
    write(folder, "resnet-18", {"top_1": 0.7, "top_1_interval": [0.4, 0.8], "macro_f1": 0.6}, 1)
    text = tables(*read_results(folder), folder)
    row = cells(text, "Resnet-18")
    assert row["Top-1"] == "0.650 [0.600, 0.700]" and row["Top-1, paper"] == "0.500"
    assert row["Top-5, paper"] == "0.900" and "Top-5" not in row
    assert (row["Parameters"], row["Minutes"], row["GFLOP"]) == ("1.50 M", "1.5", "0.25")
    assert "2 runs" in row["Remarks"] and "range over a row's runs" in text


def test_steps_tell_how_far_a_budget_went(folder):
    for seed, steps in enumerate((141, 190)):
        phase = {"processor_seconds": 90, "seconds": 60, "epochs": 0, "steps": steps}
        training = {"first": phase | {"steps": 9}, "training": phase}
        figures = {"image_gain": -1e-7 * seed, "image_gain_interval": [-1e-7, 1e-7]}
        write(folder, "student", figures, seed, training=training, details={})
        row = cells(tables(*read_results(folder), folder), "Student")
        assert row["Image gain"] == "0.000 [0.000, 0.000]" and "GFLOP" not in row
    assert (row["Steps"], row["Remarks"]) == ("150 to 199", "2 runs")


def test_answers_stand_beside_the_blind_twin_and_the_typical_answer(folder):
    figures = {"meteor": 0.3, "blind_meteor": 0.2, "blind_rouge_1": 0.1, "typical_meteor": 0.25}
    for seed in (0, 1):
        write(folder, "student", figures, seed, paper={})
    text = tables(*read_results(folder), folder)
    row, typical = cells(text, "Student"), cells(text, "Typical answer")
    assert (row["METEOR"][:5], row["Blind METEOR"][:5]) == ("0.300", "0.200")
    assert typical["METEOR"] == "0.250" and typical["Blind METEOR"] == typical["Steps"] == "–"
    assert not {name for name in row if "blind_" in name or "typical" in name}


def test_columns_are_those_of_a_groups_rows(folder):
    write(folder, "resnet-18", {"top_1": 0.6})
    answers = {"group": "Answers", "table": 1, "paper": {"bleu_4": 0.457}}
    write(folder, "talker", {"bleu_4": 0.1, "image_gain": 0.02}, **answers)
    first, second = tables(*read_results(folder), folder).split("## Answers")
    assert "BLEU-4" not in first and "Top-1" not in second
    row = cells(second, "Talker")
    assert (row["BLEU-4, paper"], row["BLEU-4"], row["Image gain"]) == ("0.457", "0.100", "0.020")


def test_references_stand_under_the_rows_that_have_their_figures(folder):
    write(folder, "resnet-18", {"top_1": 0.6})
    write(folder, "talker", {"bleu_4": 0.1}, group="Answers", paper={})
    nothing = {"group": "References", "paper": {}, "training": {}, "parameters": 0, "details": {}}
    write(folder, "most-frequent", {"top_1": 0.3}, **nothing)
    first, second = tables(*read_results(folder), folder).split("## Answers")
    assert cells(first, "Most-Frequent")["Top-1"] == "0.300"
    assert "Most-Frequent" not in second


def test_what_failed_is_named(folder, capsys):
    write(folder, "resnet-18", {"top_1": 0.6})
    failed = folder / "vgg-11-bn/fold-0/seed-1"
    failed.mkdir(parents=True)
    (failed / "failure.txt").write_text("Traceback")
    assert main(["table", str(folder)]) == 0
    assert "Failed: vgg-11-bn, fold 0, seed 1." in capsys.readouterr().out
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "Resnet-18" in (folder / "tables.md").read_text()


def test_rows_come_in_the_order_of_the_paper(folder):
    for name in ("vgg-11-bn", "alexnet", "unheard-of", "resnet-18@other"):
        write(folder, name, {"top_1": 0.6})
    lines, _ = read_results(folder)
    assert [line.first["row"] for line in lines] == [
        *("alexnet", "resnet-18@other", "vgg-11-bn", "unheard-of")
    ]


def test_names_in_the_picture_do_not_cover_each_other_and_stay_in_the_axes(folder):
    nothing = {"group": "References", "training": {}, "parameters": 0, "details": {}}
    write(folder, "most-frequent", {"top_1": 0.5}, **nothing)
    for i in range(12):
        phase = {"processor_seconds": 60 + i, "seconds": 1, "epochs": 1, "steps": 8}
        write(
            folder,
            f"network of a long name, number {i}",
            {"top_1": 0.5 + i / 500},
            training={"training": phase},
        )
    figure = accuracy_against_cost(read_results(folder)[0], "minutes")
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 13
    for i, box in enumerate(boxes):
        assert axes.get_window_extent().x0 <= box.x0 and box.x1 <= axes.get_window_extent().x1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_folder_without_rows_is_refused(tmp_path, capsys):
    assert main(["table", str(tmp_path)]) == 1
    assert "holds no rows" in capsys.readouterr().err
