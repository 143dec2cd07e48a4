"""Files appear whole or not at all."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
from support import ROOT

from mvaema.files import replacing, write_bytes, write_csv, write_json, write_text


def test_what_is_written_replaces_what_was_there(tmp_path):
    path = tmp_path / "µ.txt"
    for text in ("first\r\n", "second: 5 µm\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    write_bytes(path, b"\0\xff")
    assert path.read_bytes() == b"\0\xff"
    write_json(path, {"µ": [1, None]})
    assert json.loads(path.read_text("utf-8")) == {"µ": [1, None]}
    assert list(tmp_path.iterdir()) == [path]


def test_csv_cells_come_back_as_they_were(tmp_path):
    rows = [["a,b", 'say "µ"', "two\nlines", ""], ["\\", " ", "é", "x"]]
    write_csv(tmp_path / "t.csv", "abcd", (row for row in rows))
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [list("abcd"), *rows]


@pytest.mark.parametrize("moment", ["while it writes", "after it has written"])
def test_a_kill_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / "file"
    write_text(path, "old")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mvaema.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new')\n"
        "    if sys.argv[2] == 'after it has written': file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), moment], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "next")
    assert path.read_text() == "next"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    def rows():
        yield [1]
        raise RuntimeError("the source is gone")

    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="source is gone"):
        write_csv(path, ["n"], rows())
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write(b"first, ")
        write_text(path, "second")
        first.write(b"whole")
    assert path.read_text() == "first, whole" and list(tmp_path.iterdir()) == [path]
