"""Group commit: one transaction for all replies that wait for one.

A safe journal waits for the disk once per transaction. Replies that arrive during that wait share
the next one, so that the journal does not slow the run down.
"""

import asyncio

from mvaema.teacher.journal import Journal
from mvaema.teacher.replies import Reply, Verdict


class Recorder:
    """Writes the replies of many coroutines into one journal.

    A reply is recorded before its coroutine continues. Its verdict is not urgent: it goes into a
    later transaction, and the reply is judged again if that never comes.
    """

    def __init__(self, journal: Journal):
        self.journal = journal
        self._replies: list[tuple[Reply, asyncio.Future]] = []
        self._verdicts: list[tuple[Reply, Verdict]] = []
        self._flushing: asyncio.Task | None = None
        self._failure: Exception | None = None  # that no coroutine waited for

    async def record(self, reply: Reply):
        """Return when the reply is on the disk.

        Raises:
            JournalError, sqlite3.Error: see `Journal.record`.
        """
        future = asyncio.get_running_loop().create_future()
        self._replies.append((reply, future))
        self._start()
        await future

    def note(self, reply: Reply, verdict: Verdict):
        """Keep the verdict on a recorded reply for one of the next transactions."""
        self._verdicts.append((reply, verdict))

    async def close(self):
        """Commit what is left.

        Raises:
            JournalError, sqlite3.Error: see `Journal.record`.
        """
        self._start()
        await self._flushing
        if self._failure is not None:
            raise self._failure

    def _start(self):
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self):
        while self._replies or self._verdicts:
            replies, self._replies = self._replies, []
            verdicts, self._verdicts = self._verdicts, []
            failure = None
            try:
                await asyncio.to_thread(self.journal.record, [r for r, _ in replies], verdicts)
            except Exception as error:  # whoever waits must hear of it, whatever it is
                failure = error
            for _, future in replies:
                if future.done():  # its coroutine was cancelled
                    continue
                if failure is None:
                    future.set_result(None)
                else:
                    future.set_exception(failure)
            if not replies:
                self._failure = failure
