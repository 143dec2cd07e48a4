"""Estimates before a run, and after a pilot."""

import shutil
import signal

import pytest
from support.teacher_helpers import QUESTIONS, SteppingClock, arguments, ask, make_images, outcomes
from support.teacher_process import TeacherProcess, options

from mvaema.commands.teach import ask_command
from mvaema.teacher import estimating
from mvaema.teacher.estimating import estimate
from mvaema.teacher.journal import JournalError
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


class Lab:
    """Images, an output folder and a server, in some state."""

    def __init__(self, server, folder):
        self.server, self.images, self.output = server, folder / "images", folder / "out"

    def arguments(self, **changes):
        return arguments(self.images, self.output, self.server.url, **changes)

    def ask(self, **changes):
        return ask(self.images, self.output, self.server.url, **changes)

    def copies(self, count: int):
        """More files with the pixels of the first."""
        first = sorted(self.images.rglob("*.png"))[0]
        for i in range(count):
            shutil.copy(first, self.images / f"copy{i}.png")


def other_question_groups(lab):
    lab.ask(questions=["basics"])
    return {"questions": ["surface", "imaging", "function"]}


def errors_again(lab):
    lab.server.fail("400", times=10)
    lab.ask()
    return {"retry": ["error"]}


def after_a_refused_key(lab):
    lab.server.fail("401", times=100)
    lab.ask()
    lab.server.faults.clear()
    return {}


def after_a_refused_model_another_one(lab):
    """Nothing was answered, so the journal begins anew."""
    lab.server.fail("404", times=100)
    lab.ask()
    lab.server.faults.clear()
    return {"teacher_model": "another"}


def duplicates_after_a_finished_run(lab):
    lab.copies(4)
    lab.ask()
    return {}


def duplicates_in_a_new_folder(lab):
    lab.copies(4)
    return {}


def unreadable_files(lab):
    (lab.images / "broken.png").write_bytes(b"no image")
    (lab.images / "late.png").write_bytes(b"no image")
    lab.ask()
    make_images(lab.images / "new", 2, size=(50, 40))
    shutil.copy(next((lab.images / "new").rglob("*.png")), lab.images / "late.png")
    return {}


def a_pilot(lab):
    return {"pilot": 1}


def a_second_pilot(lab):
    lab.ask(pilot=1)
    return {"pilot": 2}


def everything_after_a_pilot(lab):
    lab.ask(pilot=1)
    return {}


def a_shard(lab):
    lab.ask(shard="0/2")
    return {"shard": "1/2"}


def one_shard_again(lab):
    lab.ask(shard="0/2", questions=["basics"])
    return {"shard": "0/2"}


def a_part_of_the_retries(lab):
    """Truncated answers are asked again, refused ones and those that were good the second time are
    not."""
    lab.server.fail("truncated", times=6)
    lab.server.fail("refusal", times=4)
    lab.ask(concurrency=1)
    lab.server.fail("truncated", times=2)
    lab.ask(concurrency=1, retry=["truncated"])
    return {"retry": ["truncated"]}


def after_an_outage(lab):
    lab.server.fail("drop", times=10**6)
    clock = SteppingClock()
    TeacherRun(lab.arguments(), clock=clock, sleep=clock.sleep).ask()
    lab.server.faults.clear()
    return {}


CASES = [
    duplicates_after_a_finished_run,
    everything_after_a_pilot,
    a_part_of_the_retries,
]
MORE_CASES = [
    other_question_groups,
    errors_again,
    after_a_refused_key,
    after_a_refused_model_another_one,
    duplicates_in_a_new_folder,
    unreadable_files,
    a_pilot,
    a_second_pilot,
    a_shard,
    one_shard_again,
    after_an_outage,
]


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)],
    ids=lambda case: case.__name__,
)
def test_dry_run_counts_what_a_run_then_asks(case, server, tmp_path, capsys):
    lab = Lab(server, tmp_path)
    make_images(lab.images, 3)
    changes = case(lab)
    before, files = len(server.exchanges), contents(lab.output)
    assert ask_command(lab.arguments(dry_run=True, **changes)) == 0
    told = capsys.readouterr().out
    assert len(server.exchanges) == before and contents(lab.output) == files
    counted = estimate(TeacherRun(lab.arguments(**changes))).requests
    assert f"  requests      {counted:,} (" in told
    lab.ask(**changes)
    assert len(server.exchanges) - before == counted
    assert estimate(TeacherRun(lab.arguments(**changes))).requests == 0 or "retry" in changes


def contents(folder) -> dict:
    """What is in the files of a folder. Whoever reads a journal leaves an empty log of SQLite's,
    and its index."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: data for path, data in files.items() if data and not path.name.endswith("-shm")}


@pytest.mark.slow
def test_dry_run_of_a_journal_that_was_killed(server, tmp_path):
    """Replies that the process did not come to judge are judged, and counted."""
    lab = Lab(server, tmp_path)
    make_images(lab.images, 4)
    server.delay = 0.02
    run = TeacherProcess(tmp_path / "log", options(lab.images, lab.output, server.url))
    run.wait_for(lambda: len(server.exchanges) >= 15)
    run.signal(signal.SIGKILL)
    run.end()
    counted = estimate(TeacherRun(lab.arguments())).requests
    before = len(server.exchanges)
    lab.ask()
    assert len(server.exchanges) - before == counted
    assert outcomes(lab.output) == {"ok": 4 * QUESTIONS}


def test_questions_in_open_batches_are_not_counted_again(server, tmp_path):
    lab = Lab(server, tmp_path)
    make_images(lab.images, 2)
    server.refuse_at = "retrieve"
    lab.ask(batch=True, batch_poll=0.01)
    told = str(estimate(TeacherRun(lab.arguments())))
    assert "requests      0 (0 questions have a reply already, 20 are in open batches)" in told


def test_dry_run_of_another_configuration_is_refused(server, tmp_path):
    lab = Lab(server, tmp_path)
    make_images(lab.images, 1)
    lab.ask()
    with pytest.raises(JournalError, match="another configuration") as raised:
        estimate(TeacherRun(lab.arguments(temperature=1.0)))
    assert str(lab.output) in str(raised.value)


def test_of_very_many_new_files_the_first_stand_for_the_rest(server, tmp_path, monkeypatch):
    lab = Lab(server, tmp_path)
    make_images(lab.images, 12)
    lab.copies(2)  # sorted before the folder of the others
    lab.ask(pilot=4)
    monkeypatch.setattr(estimating, "SAMPLE", 5)
    result = estimate(TeacherRun(lab.arguments()))
    assert result.requests == 100, "the true number: the copies were met by the pilot"
    assert "about" in str(result) and "5 of 10 new files were read" in str(result)
