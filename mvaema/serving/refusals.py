"""What a client is told when it gets no answer: a status code, and a body as OpenAI's API has it.

What is special about it:
- a message says what was expected and what to do. It never holds a path, a stack trace or what a
  library said about a file;
- the `code` is short and stable; the log has it, the message it has not.
"""


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        code: a slug to act on and to count by.
        param: the field of the request that is to blame, if one is.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = headers or {}

    @property
    def body(self) -> dict:
        """The error as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def bad_request(message: str, param: str | None = None, code: str = "invalid_request") -> Refusal:
    """A request that no server of this kind could answer."""
    return Refusal(400, code, message, param)


def unsupported(param: str, message: str) -> Refusal:
    """A request for what OpenAI's API has and a student has not."""
    return bad_request(message, param, "unsupported_parameter")


def queue_is_full(seconds: float) -> Refusal:
    """As many requests are in progress as may be; `seconds` is when to try again."""
    wait = str(max(1, min(60, round(seconds))))
    return Refusal(
        429,
        "queue_full",
        f"the server has as many requests in progress as it takes. Try again in {wait} s.",
        headers={"Retry-After": wait},
    )


def not_ready() -> Refusal:
    """The student is still being loaded."""
    return Refusal(
        503,
        "not_ready",
        "the student is still being loaded. Try again in a few seconds.",
        headers={"Retry-After": "2"},
    )


def stopping() -> Refusal:
    """The server ends before the question was answered."""
    return Refusal(503, "stopping", "the server is stopping; ask another one, or later.")


def timed_out(seconds: float) -> Refusal:
    """The answer took too long. Asking again at once would only double the load."""
    return Refusal(
        504,
        "timeout",
        f"there was no answer within {seconds:g} s. The server is busy: ask later.",
        headers={"x-should-retry": "false"},  # OpenAI's clients heed it
    )


def failed() -> Refusal:
    """The server's own fault."""
    return Refusal(
        500,
        "internal_error",
        "the server failed. Its log has the place under the id in the header x-request-id.",
        headers={"x-should-retry": "false"},
    )
