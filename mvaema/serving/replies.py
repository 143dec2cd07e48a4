"""Answers in the form of Chat Completions, whole or as server-sent events."""

import json
import re
import secrets
import time
from collections.abc import Iterator

from mvaema.serving.batching import Answer

DONE = b"data: [DONE]\n\n"


def until_stop(text: str, stop: tuple[str, ...]) -> str:
    """The text before the first of the texts at which it ends."""
    return text[: min([at for at in map(text.find, stop) if at >= 0], default=None)]


def pieces(text: str) -> list[str]:
    """A text word by word; together they are the text."""
    return re.findall(r"\s*\S+\s*\Z|\s*\S+|\s+", text)


class Reply:
    """The answer to one request.

    Args:
        model: name of the student.
        prompt_tokens: of the question as the student reads it, without the image.
    """

    def __init__(self, model: str, prompt_tokens: int):
        self.model, self.prompt_tokens = model, prompt_tokens
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, answer: Answer, text: str) -> dict:
        """The body of a reply in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _reason(answer, text),
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage(answer)}

    def begin(self) -> bytes:
        """The first event of a reply in pieces."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def end(self, answer: Answer, text: str, include_usage: bool) -> Iterator[bytes]:
        """The last events."""
        yield self._chunk({}, _reason(answer, text))
        if include_usage:
            head = self._head("chat.completion.chunk")
            yield event({**head, "choices": [], "usage": self._usage(answer)})
        yield DONE

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _usage(self, answer: Answer) -> dict:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": answer.tokens,
            "total_tokens": self.prompt_tokens + answer.tokens,
        }


def event(body: dict) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def _reason(answer: Answer, text: str) -> str:
    return "length" if answer.cut and text == answer.text else "stop"
