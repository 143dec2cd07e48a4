"""Group commit: whoever waits for a reply to be recorded hears what became of it."""

import asyncio
from dataclasses import replace

import pytest

from mvaema.teacher.journal import Journal
from mvaema.teacher.recording import Recorder
from mvaema.teacher.replies import Reply


def test_any_failure_to_record_reaches_whoever_waits(tmp_path):
    good = Reply("a", "image", "basics", 1, asked_at=1.0, latency_s=0.1, status=200, raw=b"")

    async def record(journal):
        recorder = Recorder(journal)
        with pytest.raises(OverflowError):
            await asyncio.wait_for(recorder.record(replace(good, status=10**30)), 60)
        await recorder.record(good)
        await recorder.close()

    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        asyncio.run(record(journal))
        assert journal.attempts_at(good.fingerprint)
