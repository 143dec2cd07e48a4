"""`mvaema build`: what it prints, and its exit status."""

import numpy as np
import pytest
from PIL import Image

from mvaema.commands.build import main
from mvaema.micrographs.shards import write_shards


def save(path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_nothing_to_build_is_an_error(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    assert main(["folder", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert main(["folder", str(tmp_path / "no"), str(tmp_path / "out")]) == 1
    assert "error: " in (printed := capsys.readouterr().err) and "no is not a folder" in printed


def test_the_result_is_told_in_numbers_and_names_the_private_table(tmp_path, capsys):
    for seed in range(3):
        save(tmp_path / "in" / f"{seed}.png", seed)
    save(tmp_path / "in" / "twin.png", 0)
    (tmp_path / "in" / "broken.png").write_bytes(b"?")
    (tmp_path / "in" / "notes.docx").touch()
    command = ["folder", str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3 rows; 5 files read, 0 unchanged." in printed
    assert "1 files have the pixels of another file" in printed
    assert "1 files cannot be read: 1 not-an-image." in printed
    assert "1 files were ignored: 1 .docx." in printed
    assert str(tmp_path / "out.private" / "train.csv") in printed
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3 rows; 0 files read, 4 unchanged." in printed
    assert "1 of these have not changed" in printed and "--retry_failed" in printed
    assert main([*command, "--retry_failed"]) == 0
    assert "3 rows; 1 files read, 4 unchanged." in capsys.readouterr().out


def test_columns_that_are_left_out_are_named(tmp_path, capsys):
    image = Image.linear_gradient("L")
    write_shards([{"image": image, "image_id": "a", "licence": "MIT"}], tmp_path / "in")
    assert main(["dataset", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "Columns left out: image_id" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "in"], "required: OUTPUT_DIR"),
        (["folder", "in", "out", "--work", "2"], "unrecognized arguments: --work"),
        (["folder", "in", "out", "--synonyms", "wires"], "expected NAME=VALUE, got 'wires'"),
        (["tree", "in", "out"], "invalid choice: 'tree'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments, prog="mvaema build")
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and message in printed and "usage: mvaema build" in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--synonyms", "wires=Unicorns"], "Unicorns is not a category; expected one of"),
        (["--group_pattern", "lot"], "needs parentheses"),
        (["--category", "Unicorns"], "Unicorns is not a category"),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_errors(tmp_path, option, message, capsys):
    assert main(["folder", str(tmp_path), str(tmp_path / "out"), *option]) == 1
    assert message in capsys.readouterr().err
