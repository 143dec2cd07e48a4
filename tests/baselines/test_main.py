"""The command: what it lists, what it refuses, and in which words."""

import pytest

from baselines.__main__ import main


def test_it_lists_every_row(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "ConvNets (convnets), table 2 of the paper" in out
    assert "resnet-18" in out and "top_1 0.485" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fold", "5"], r"--fold must be in [0, 5)"),
        (["--epochs", "0"], "epochs must be at least 1; got 0."),
        (["--budget", "-1"], "budget must be more than 0 minutes"),
        (["--test_split", "train"], "test_split must be another than split"),
        (["--mix", "3:1"], "must have a number for --dataset"),
        (["--pretrained", "eyes"], "--pretrained is for rows that start from trained weights"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, said, stripes_and_dots, tmp_path, capsys):
    command = ["run", "small-cnn", "--dataset", str(stripes_and_dots), "--folds", "5"]
    assert main([*command, "--output_dir", str(tmp_path / "rows"), *flags]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


def test_a_row_is_run_and_put_into_a_table(stripes_and_dots, tmp_path, capsys):
    folder = str(tmp_path / "rows")
    command = ["run", "references", "small-cnn", "--dataset", str(stripes_and_dots)]
    command += ["--output_dir", folder, "--folds", "5", "--image_size", "32", "--epochs", "1"]
    assert main(command) == 0
    assert "2 done" in capsys.readouterr().out
    assert main(["table", folder]) == 0
    assert "Most frequent category" in capsys.readouterr().out


def test_a_failed_row_is_the_commands_failure(stripes_and_dots, tmp_path, capsys):
    """MicroNet's file of weights is not there."""
    command = ["run", "micronet-tuned", "small-cnn", "--dataset", str(stripes_and_dots)]
    command += ["--output_dir", str(tmp_path / "rows"), "--folds", "5"]
    command += ["--image_size", "32", "--epochs", "1"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "1 done, 0 done before, 0 left to another process, 1 failed." in captured.out
    assert "failed: micronet-tuned, fold 0, seed 0: resnet50_pretrained" in captured.err
