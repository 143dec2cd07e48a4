"""SIGTERM and Ctrl-C: a run stops after its step, with a checkpoint to resume from."""

import signal


class StopRequested(Exception):
    """A process of the run has received a signal. Raised on every process, between two steps."""


class Interrupted(RuntimeError):
    """A signal has ended the run; it can be resumed.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


class Signals:
    """Inside `with`, the first SIGTERM or SIGINT is only noted; a second one stops at once.

    Attributes:
        received: number of the signal, 0 if there was none.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received = 0

    def __enter__(self) -> "Signals":
        self.before = {number: signal.signal(number, self._receive) for number in self.NUMBERS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
