"""JSON lines: read with the broken line named, appended to, and safe after a kill."""

import json

import pytest

from mvaema.files import JsonLines, read_json_lines


def test_the_broken_line_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = [{"answer": "a\u2028b"}, {"answer": "µm"}]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    assert read_json_lines(path) == rows
    for broken in ('{"answer": "a', "[1]"):
        path.write_text(f"{json.dumps(rows[0])}\n{broken}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"answers.jsonl, line 2: expected one JSON object"):
            read_json_lines(path)


@pytest.mark.parametrize("cut", range(1, 12))
def test_an_incomplete_last_line_is_dropped_and_the_file_grows_on(tmp_path, cut):
    """Cut anywhere in the last line, also in the middle of a two-byte character."""
    path = tmp_path / "answers.jsonl"
    lines = JsonLines(path)
    assert lines.rows == []
    lines.append([{"n": 1}])
    complete = path.read_bytes()
    lines.append([{"n": "µµµ"}])
    path.write_bytes(path.read_bytes()[: len(complete) + cut])
    lines = JsonLines(path)
    assert lines.rows == [{"n": 1}] and path.read_bytes() == complete
    lines.append([{"n": 3}])
    assert lines.rows == read_json_lines(path) == [{"n": 1}, {"n": 3}]
