"""The journal: durable, locked, and refused under another configuration."""

import shutil
import sqlite3

import pytest

from mvaema.teacher.journal import Journal, JournalError
from mvaema.teacher.replies import Reply


def reply(name: str, attempt: int = 1) -> Reply:
    return Reply(name, "image", "basics", attempt, asked_at=1.0, latency_s=0.1, status=200, raw=b"")


def test_journal_is_durable_and_locked(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path, {"teacher_model": "m"}) as journal:
        assert journal.query("PRAGMA journal_mode")[0][0] == "wal"
        assert journal.query("PRAGMA synchronous")[0][0] == 2, "FULL"
        journal.record([reply("a")])
        with pytest.raises(JournalError, match="another run is writing"):
            Journal(path, {"teacher_model": "m"})
        with Journal(path, read_only=True) as reader:
            assert len(reader.query("SELECT * FROM replies")) == 1
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.record([reply("b")])
    with Journal(path, {"teacher_model": "m"}) as journal:
        assert journal.last_id() == 1


def test_journal_of_another_configuration_is_refused_and_untouched(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path, {"teacher_model": "m", "max_tokens": 1}) as journal:
        journal.record([reply("a")])
    with pytest.raises(JournalError) as raised:
        Journal(path, {"teacher_model": "n", "max_tokens": 1})
    assert "teacher_model: 'm' there, 'n' now" in str(raised.value)
    assert "max_tokens" not in str(raised.value)
    with Journal(path, {"teacher_model": "m", "max_tokens": 1}) as journal:
        assert journal.last_id() == 1


def test_same_attempt_twice_is_refused_whole(tmp_path):
    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        journal.record([reply("a")])
        with pytest.raises(sqlite3.IntegrityError):
            journal.record([reply("b"), reply("a")])
        assert journal.last_id() == 1


def test_a_file_that_is_no_journal(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(path, {})
    assert path.read_bytes().startswith(b"not a database")


@pytest.mark.parametrize("loss", ["deleted", "emptied", "older"])
@pytest.mark.parametrize("read_only", [False, True])
def test_journal_that_lost_replies_is_refused(loss, read_only, tmp_path):
    """And left as it is, so that it can be put back. Deleting the lock means to go on."""
    path = tmp_path / "journal-00000-of-00001.sqlite"
    with Journal(path, {"teacher_model": "m"}) as journal:
        journal.record([reply("a")])
    older = path.read_bytes()
    with Journal(path, {"teacher_model": "m"}) as journal:
        journal.record([reply("b")])
    complete = path.read_bytes()
    if loss == "deleted":
        path.unlink()
    else:
        path.write_bytes(older if loss == "older" else b"")
    for _ in range(2):
        with pytest.raises(JournalError, match="is not complete: 3 commits were made"):
            Journal(path, {"teacher_model": "m"}, read_only=read_only)
    assert path.exists() is (loss != "deleted")
    path.write_bytes(complete)
    with Journal(path, {"teacher_model": "m"}, read_only=read_only) as journal:
        assert journal.last_id() == 2
    path.write_bytes(older)
    path.with_suffix(".lock").unlink()
    with Journal(path, {"teacher_model": "m"}, read_only=read_only) as journal:
        assert journal.last_id() == 1


def test_folder_without_its_journals_is_not_begun_again(tmp_path):
    path = tmp_path / "journal-00000-of-00001.sqlite"
    for name in ("images/0a/0a12.png", "dataset/README.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
        with pytest.raises(JournalError, match=f"holds {name} of an earlier run, but no journal"):
            Journal(path, {})
        shutil.rmtree(tmp_path / name.partition("/")[0])
    Journal(path, {}).close()
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "README.md").touch()
    Journal(tmp_path / "journal-00001-of-00002.sqlite", {}).close()  # another shard
