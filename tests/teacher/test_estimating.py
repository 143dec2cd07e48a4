"""Estimates before a run, and after a pilot."""

import pytest
from support.teacher_helpers import arguments, make_images

from mvaema.commands.teach import ask_command
from mvaema.teacher.run import TeacherRun


def test_dry_run_sends_and_writes_nothing(server, tmp_path, capsys):
    images, output = make_images(tmp_path / "images", 5), tmp_path / "out"
    args = {"teacher_model": "gpt-4o"}
    assert ask_command(arguments(images, output, server.url, dry_run=True, **args)) == 0
    told = capsys.readouterr().out
    assert "50 (0 questions have a reply already)" in told and "assumed" in told
    assert not server.exchanges and not output.exists()
    assert ask_command(arguments(images, output, server.url, pilot=2, **args)) == 0
    told = capsys.readouterr().out
    assert "30 (20 questions have a reply already)" in told
    assert "1,000 tokens in, 100 out (measured on 20 replies)" in told
    # 30 x (1,000 x $2.5 + 100 x $10) per million
    assert "$0.1050" in told
    assert len(server.exchanges) == 20
    assert ask_command(arguments(images, output, server.url, **args)) == 0
    assert len(server.exchanges) == 50, "the pilot's answers count"


def test_unknown_price_is_said_to_be_unknown(server, tmp_path, capsys):
    images = make_images(tmp_path / "images", 1)
    ask_command(arguments(images, tmp_path / "out", server.url, dry_run=True))
    assert "cost unknown" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--max_cost needs the price of teacher"):
        TeacherRun(arguments(images, tmp_path / "out", server.url, max_cost=1.0))
