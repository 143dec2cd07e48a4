"""Sources of a student: what is a Hub repository, and which files name a folder of this machine."""

from pathlib import Path

import pytest

from mvaema.students.places import hub_id, hub_ids, refuse_places


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_only_what_can_be_nothing_else_is_a_hub_id(lab):
    assert hub_id("lab/data") == "lab/data"
    assert [hub_id(s) for s in (None, "wafers", "/lab/data", "../lab/data", "~/data")] == [None] * 5
    (lab / "lab" / "data").mkdir(parents=True)
    assert hub_id("lab/data") is None


def test_only_sources_of_a_run_are_looked_at(lab):
    settings = {"dataset": "lab/data", "model": "runs", "output_dir": "lab/run", "epochs": 3}
    assert hub_ids(settings) == {"dataset": "lab/data"}


def test_a_word_that_begins_like_a_folder_is_no_place(lab):
    file = lab / "README.md"
    for text, refused in (
        ("from wafers/lot7 and others", True),
        ("from wafers/lot7/a.png", True),
        ("from wafers/lot70", False),
        ("of wafers", False),
    ):
        file.write_text(text)
        if refused:
            with pytest.raises(ValueError, match=r"README\.md contains .*'wafers/lot7'.*Remove"):
                refuse_places([file], lab / "run", ["wafers/lot7"])
        else:
            refuse_places([file], lab / "run", ["wafers/lot7"])
