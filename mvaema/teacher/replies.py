"""What a reply is: its outcome, its answer, and whether to ask again.

What is special about it:
- a verdict depends only on the bytes in the journal, never on the server, so better rules can be
  applied to replies that were paid for long ago;
- a reply that is not a completion (an error page with status 200, no choices) is an error, never
  an answer;
- no field is trusted: whatever its type or value, the verdict can be stored and exported;
- reasoning is kept apart from the answer.

Three fields of a [`Verdict`] decide what happens to a question. `settled`: it is not asked again
unless `--retry` says so. Not settled: it is asked again after a while. `stop`: the next question
would fail too, so the run ends.
"""

import json
import re
from dataclasses import dataclass

# Codes (`error.code` or `error.type`) of errors that do not pass by waiting.
QUOTA_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_balance",
}
FILTER_CODES = {"content_filter", "content_policy_violation", "invalid_prompt"}
PARAMETER_CODES = {"unsupported_parameter", "unsupported_value"}

# Statuses after which the same request may succeed: the server or a proxy was busy.
TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}

# Refusals to help or to look at the image, at the start of a text. "I cannot determine the
# composition" and "I cannot see a scale bar" are answers.
AM = r"(?:i(?:['’]m| am) )?"
CANNOT = (
    r"(?:can(?:no|['’])t|can not|could not|won['’]t|will not|(?:am|['’]m) (?:unable|not able) to)"
)
HELP = r"(?:assist|help|comply|fulfil|answer|engage|do that|continue|process|provide|discuss)"
LOOK = r"(?:view|see|analy[sz]e|access|interpret|open|process|describe)(?: or \w+)?"
IMAGE = r"(?:image|picture|photo|file|micrograph)s?"
WHICH = r"(?:the |this |that |any |these |your )?(?:attached |uploaded |provided )?"
REFUSALS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^{AM}(?:very |so |really )?(?:sorry|(?:i )?apologi[sz]e)\b[^.]{{0,40}}?{CANNOT}"
        rf"[^.]{{0,20}}?\b{HELP}",
        rf"^(?:unfortunately, )?i ?{CANNOT} (?:\w+ )?(?:assist|help|comply|fulfil|engage|process)",
        rf"^(?:unfortunately, |{AM}sorry,? (?:but )?)?i ?{CANNOT} (?:directly |actually )?"
        rf"{LOOK} {WHICH}{IMAGE}\b",
        rf"^as an ai\b[^.]{{0,60}}?(?:{CANNOT}|do(?: not|n['’]t) have the ability)",
        r"^[^.]{0,120}\b(?:against|violates?) (?:my|our|the|openai['’]s) "
        r"(?:guidelines|usage polic|content polic|polic)",
    )
]
REFUSAL_LENGTH = 600  # characters; a longer text that begins like a refusal usually answers

# Tags in which models write reasoning by themselves: DeepSeek, Qwen and others; Kimi.
THOUGHTS = (
    r"(?:<(?:think|thinking|thought|reasoning)>|◁think▷)",
    r"(?:</(?:think|thinking|thought|reasoning)>|◁/think▷)",
)
# What encloses an answer, the first that is found: the tags that the prompt asks for, GLM's box,
# and the last channel of gpt-oss.
ENCLOSURES = (
    (r"<\s*(?:final[_ ]?)?answer\s*>", r"<\s*/\s*(?:final[_ ]?)?answer\s*>"),
    (r"<\|begin_of_box\|>", r"<\|end_of_box\|>"),
    (r"<\|channel\|>final<\|message\|>", r"<\|(?:end|return)\|>"),
)
MOST_OPENINGS = 20  # looked at, from the end; a text of nothing but tags must not take long
HEADING = re.compile(r"^[ \t#*]*(?:final )?answer[ \t*]*:[ \t*]*", re.IGNORECASE | re.MULTILINE)
# Tokens of chat templates, which a server may fail to remove, with the names that follow some.
SPECIAL_TOKEN = re.compile(r"<\|(?:start|channel)\|>\w+|<\|\w{1,40}\|>")
# Types of the parts of a message that are no answer.
REASONING_PARTS = {"reasoning", "reasoning_content", "reasoning_text", "thinking", "thought"}

# Above this, a number of tokens is a mistake of the server.
MOST_TOKENS = 10**9

# Fields of a verdict that the journal keeps beside the raw reply.
VERDICT_COLUMNS = (
    "outcome",
    "settled",
    "finish_reason",
    "returned_model",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
)


@dataclass(frozen=True)
class Reply:
    """What one attempt at a question brought back, as it came.

    `status` and `raw` are the HTTP status and body. Without a response both are None, and
    `problem` says what happened: `timeout`, `dropped`, `unreachable`, `lost` (given up with its
    batch), or a code of the Batch API.
    """

    fingerprint: str  # of the question
    image_id: str
    question_id: str
    attempt: int
    asked_at: float  # Unix time in seconds
    latency_s: float | None
    status: int | None = None
    request_id: str | None = None
    batch: str | None = None
    problem: str | None = None
    raw: bytes | None = None

    def judge(self) -> "Verdict":
        """The verdict on this reply."""
        return judge(self.status, self.raw, self.problem)


@dataclass(frozen=True)
class Verdict:
    """What a reply means.

    Attributes:
        outcome: one of `mvaema.micrographs.schema.OUTCOMES`.
        settled: the question is not asked again unless `--retry` says so.
        throttled: the server asked to slow down (429).
        stop: why the run must end and what to do, as sentences; None to carry on.
        foreign: nothing that a model server sends (a page, or nothing in time).
        detail: for errors, what was wrong.
        answer, reasoning: the two parts of a completion; None when it has none.
        marked: the answer was in the tags that the prompt asks for.
        prompt_tokens, cached_tokens, completion_tokens: usage as the server stated it; all None
            where it left one out or stated what cannot be.
    """

    outcome: str
    settled: bool
    throttled: bool = False
    stop: str | None = None
    foreign: bool = False
    detail: str | None = None
    answer: str | None = None
    reasoning: str | None = None
    marked: bool = False
    finish_reason: str | None = None
    returned_model: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None

    def columns(self) -> dict:
        """The part that the journal keeps beside the raw reply."""
        return {name: getattr(self, name) for name in VERDICT_COLUMNS}

    @property
    def is_completion(self) -> bool:
        """Whether the model answered at all, well or badly."""
        return self.outcome != "error"

    @property
    def usage(self) -> tuple[int, int, int] | None:
        """(prompt, cached, completion) tokens; None when the server did not state them."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens, self.cached_tokens or 0, self.completion_tokens


def judge(status: int | None, raw: bytes | None, problem: str | None) -> Verdict:
    """The verdict on one reply.

    Args:
        status: HTTP status, None when there was no response.
        raw: the body.
        problem: without a response, what happened (`timeout`, `dropped`, `unreachable`).
    """
    if status is None:
        # After a timeout the answer may have been produced and charged, and asking again does not
        # help a slow server: that is left to `--retry error`. The others delivered nothing.
        late = problem == "timeout"
        return Verdict("error", settled=late, foreign=late, detail=problem)
    body = parse_json(raw)
    if 200 <= status < 300:
        return _judge_completion(body)
    return _judge_error(status, body, raw or b"")


def parse_json(raw: bytes | None):
    """What a server's JSON says; None where it is none.

    A byte that is no UTF-8, or a number of thousands of digits, does not spoil the rest.
    """

    def integer(digits: str) -> int | float:
        return int(digits) if len(digits) < 20 else float(digits)

    text = (raw or b"").decode("utf-8-sig", "replace")
    try:
        return json.loads(text, parse_int=integer)
    except (ValueError, RecursionError):
        return None


def _judge_completion(body) -> Verdict:
    def not_a_completion(detail: str, foreign: bool = False) -> Verdict:
        return Verdict("error", settled=True, foreign=foreign, detail=f"status 200, but {detail}")

    if not isinstance(body, dict):
        return not_a_completion("the body is not a JSON object", foreign=True)
    if body.get("error"):
        return not_a_completion(f"it holds an error: {_message(body)}")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return not_a_completion("it has no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return not_a_completion("its choice has no message")

    texts, thoughts, refusals = _message_parts(message)
    reasoning, answer, marked = split_answer(texts)
    finish = clean(choice.get("finish_reason"))
    prompt, cached, completion = _usage(body.get("usage"))
    if finish == "content_filter":
        outcome = "filtered"
    elif refusals or is_refusal(answer):
        outcome = "refused"
        answer = answer or refusals
    elif finish == "length":
        outcome = "truncated"
    else:
        outcome = "ok" if answer else "empty"
    return Verdict(
        outcome,
        settled=True,
        answer=answer or None,
        reasoning="\n\n".join(part for part in (thoughts, reasoning) if part) or None,
        marked=marked,
        finish_reason=finish,
        returned_model=clean(body.get("model")),
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
    )


def _judge_error(status: int, body, raw: bytes) -> Verdict:
    """The verdict on a response whose status is that of an error."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    codes = {clean(error.get("code")), clean(error.get("type"))}
    text = _message(body) or raw[:300].decode(errors="replace")
    detail = f"status {status}: {text}"

    def stop(advice: str) -> Verdict:
        return Verdict("error", settled=False, detail=detail, stop=f"{detail}. {advice}")

    if codes & QUOTA_CODES or status == 402:
        return stop("The account has no quota left. Top it up or use another key.")
    if status == 401:
        return stop("The key was not accepted. Check the variable that --api_key_env names.")
    if status == 403:
        return stop("The key may not use this model. Check its rights, or use another model.")
    if status in (404, 405):
        return stop("Check --teacher_model (GET /models lists the names) and --endpoint.")
    if 300 <= status < 400:
        return stop("The endpoint redirects. Pass the final address as --endpoint.")
    if codes & FILTER_CODES:
        return Verdict("filtered", settled=True, detail=detail)
    if codes & PARAMETER_CODES:
        return stop("The model refuses a parameter. Choose another --profile.")
    if status in TRANSIENT or status >= 500:
        return Verdict("error", settled=False, throttled=status == 429, detail=detail)
    return Verdict("error", settled=True, detail=detail)


def split_answer(content: str) -> tuple[str, str, bool]:
    """A completion's text as (reasoning, answer, marked).

    The answer is what `<answer>` and `</answer>` enclose: the last pair with something in it, and
    up to the end of the text where `</answer>` is missing. Without tags it is what a model's own
    marks enclose, or what follows a line that begins with "Answer:" or "Final answer:". Without
    any of these the whole text is the answer, and `marked` is False. Blocks like `<think>`, which
    some models write by themselves, are reasoning, and special tokens of a chat template are
    neither.
    """
    begin, end = THOUGHTS
    block = re.compile(rf"{begin}(.*?)(?:{end}|\Z)", re.DOTALL | re.IGNORECASE)
    thoughts, rest = block.findall(content), block.sub("", content)
    closings = list(re.finditer(end, rest, re.IGNORECASE))
    if closings:  # the template opened the block in the prompt
        thoughts.append(rest[: closings[-1].start()])
        rest = rest[closings[-1].end() :]
    before, answer, marked = _enclosed(rest)
    thoughts = [SPECIAL_TOKEN.sub("", thought).strip() for thought in [*thoughts, before]]
    answer = SPECIAL_TOKEN.sub("", answer).strip()
    return "\n\n".join(thought for thought in thoughts if thought), answer, marked


def _enclosed(text: str) -> tuple[str, str, bool]:
    """(what is before the answer, the answer, whether something marks it)."""
    for begin, end in ENCLOSURES:
        openings = list(re.finditer(begin, text, re.IGNORECASE))[-MOST_OPENINGS:]
        for opening in reversed(openings):
            answer = re.split(end, text[opening.end() :], maxsplit=1, flags=re.IGNORECASE)[0]
            if answer.strip() or opening is openings[0]:
                return text[: opening.start()], answer, True
    heading = HEADING.search(text)
    if heading:
        return text[: heading.start()], text[heading.end() :], True
    return "", text, False


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer. Knows the English phrases that models use."""
    text = text.strip()
    return len(text) <= REFUSAL_LENGTH and any(pattern.search(text) for pattern in REFUSALS)


def clean(value) -> str | None:
    """A string that can be stored, printed and exported; None for anything else.

    JSON can hold halves of surrogate pairs, which UTF-8 cannot.
    """
    if not isinstance(value, str):
        return None
    if value.isascii():
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _message_parts(message: dict) -> tuple[str, str, str]:
    """The text, the reasoning and the refusal in a message; some servers send lists of parts."""
    content = message.get("content")
    apart = (_text(message.get(name)) for name in ("reasoning_content", "reasoning", "thinking"))
    texts, thoughts, refusals = [], [next(filter(None, apart), "")], [_text(message.get("refusal"))]
    for part in content if isinstance(content, list) else [content]:
        fields = part if isinstance(part, dict) else {}
        kind = clean(fields.get("type"))
        if kind in REASONING_PARTS or fields.get("thought") is True:
            thoughts += [_text(fields.get(n)) for n in ("text", "thinking", "reasoning", "summary")]
        elif kind == "refusal":
            refusals.append(_text(fields.get("refusal")))
        else:
            texts.append(_text(part))
    return "".join(texts), "\n\n".join(filter(None, thoughts)), "".join(refusals)


def _text(value) -> str:
    """The text of a string, of a part, or of a list of both."""
    parts = value if isinstance(value, list) else [value]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(clean(text) or "" for text in texts)


def _message(body) -> str | None:
    """The message of an error, fit for one line of a terminal."""
    error = body.get("error", body) if isinstance(body, dict) else None
    message = clean(error.get("message") if isinstance(error, dict) else error)
    if message is None:
        return None
    return re.sub(r"[^\S ]|[\x00-\x1f\x7f-\x9f]", " ", message[:300]).rstrip(". ")


def _usage(usage) -> tuple[int, int | None, int] | tuple[None, None, None]:
    """(prompt, cached, completion) tokens."""
    usage = usage if isinstance(usage, dict) else {}
    prompt, completion = (_count(usage.get(f"{part}_tokens")) for part in ("prompt", "completion"))
    if prompt is None or completion is None:
        return None, None, None
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return prompt, cached and min(cached, prompt), completion


def _count(value) -> int | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= MOST_TOKENS or value != int(value):
        return None
    return int(value)
