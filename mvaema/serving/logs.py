"""What the operator reads: one JSON object a line on stderr, without what was asked or answered.

What is special about it:
- a request's line has its id, status, sizes and durations. No image, question, answer, key, file
  name or address of a client is in any line;
- of other libraries' messages only the place in their code is logged: their words may quote a file.
  An exception is logged as its type and the lines of code that it came through.
"""

import json
import logging
import sys
import time
import traceback

# Libraries whose messages are their own words.
TRUSTED = ("mvaema.serving", "uvicorn")


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON; `extra={"facts": {...}}` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        if record.name.startswith(TRUSTED):
            line["event"] = record.getMessage()
        else:
            line["event"] = f"a message of {record.name}"
            line["at"] = f"{record.pathname}:{record.lineno}"
        if record.exc_info and record.exc_info[0] is not None:
            kind, _, trace = record.exc_info
            line["error"] = kind.__name__
            line["trace"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(trace)
            ]
        line |= getattr(record, "facts", {})
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send all logs and warnings of this process to stderr, in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in TRUSTED:
        logging.getLogger(name).setLevel(level)
    transformers = logging.getLogger("transformers")  # has a handler of its own
    transformers.handlers[:], transformers.propagate = [], True
    logging.captureWarnings(True)
