"""The server's benchmark runs, loses nothing, and compares every answer. No times are asserted."""

import re

import pytest
from support.tiny_student import save_tiny_student

from benchmarks import serving


def test_the_load_by_hand():
    load = serving.Load("four", 2.0, [0.1, 0.2, 0.3, 9.0], lost=1, different=2)
    cells = ["four", "4", "2.00", "0.50 ×", "0.25 s", "9.00 s", "1", "2"]
    assert load.cells(alone=4.0) == cells


@pytest.mark.slow
def test_a_server_under_load(tmp_path, capsys):
    student = save_tiny_student(tmp_path / "student")
    words = [
        "--model",
        str(student),
        "--requests",
        "12",
        "--total",
        "60",
        "--images",
        "3",
        "--alone",
        "4",
    ]
    serving.main([*words, "--clients", "1", "6"])
    printed = capsys.readouterr().out
    lines = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")]
    cells = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}
    alone = cells["`model.answer`, one by one"]
    assert alone[0] == "4" and alone[2] == "1.00 ×"
    for name, count in (("server, 1 client", "4"), ("server, 6 clients", "12")):
        assert (cells[name][0], cells[name][-2:]) == (count, ["0", "0"])
    # Those that stayed were all answered, and rightly.
    vanished = cells["server, 6 clients, every second vanishes"]
    assert (vanished[0], vanished[-2:]) == ("6", ["0", "0"])
    assert "'in_progress': 0, 'queue': 0, 'working': 0" in printed
    assert re.search(r"memory after 60 requests: (\d+ MiB|unknown)", printed)
    assert "exit status: 0" in printed
