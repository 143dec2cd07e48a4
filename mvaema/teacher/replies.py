"""What a reply is: its outcome, its answer, and whether the question is to be asked again.

What is special about it:
- pure functions of the bytes in the journal: reading a reply never needs the server, so a better
  reading can be applied to replies paid for long ago;
- a reply that is not a completion (an error page with status 200, no choices) is an error, never
  an answer, and reasoning never ends up in the answer.

The fate of a question follows from three fields of a [`Reading`]: `settled` (do not ask again
unless told to), not settled (ask again after a while), `stop` (the next question would fare no
better: end the run).
"""

import json
import re
from dataclasses import dataclass

# Codes (`error.code` or `error.type`) that no waiting repairs.
QUOTA_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_balance",
}
FILTER_CODES = {"content_filter", "content_policy_violation", "invalid_prompt"}
PARAMETER_CODES = {"unsupported_parameter", "unsupported_value"}

# Statuses after which the same request may succeed: the server or something before it was busy.
TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}

# Anchored at the start and tied to helping or to seeing the image at all: "I cannot determine
# the composition" and "I cannot see a scale bar" are answers.
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
REFUSAL_LENGTH = 600  # characters; longer texts that begin like a refusal go on to answer


# What the journal keeps of a reading, beside the raw reply.
READ_COLUMNS = (
    "outcome",
    "settled",
    "finish_reason",
    "returned_model",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
)


@dataclass(frozen=True)
class Reading:
    """A reply, read.

    Attributes:
        outcome: one of `mvaema.micrographs.schema.OUTCOMES`.
        settled: the question is not asked again unless told to (`--retry`).
        throttled: the server asked for patience (429).
        stop: why the run must end and what to do, or None.
        detail: for errors, what was wrong.
        answer, reasoning: the two parts of a completion; None when there is none.
        marked: the answer stood in the marked form that the prompt asks for.
    """

    outcome: str
    settled: bool
    throttled: bool = False
    stop: str | None = None
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
        """The part the journal keeps beside the raw reply."""
        return {name: getattr(self, name) for name in READ_COLUMNS}

    @property
    def is_completion(self) -> bool:
        """Whether the model answered at all, well or badly."""
        return self.outcome != "error"


def read_reply(status: int | None, raw: bytes | None, problem: str | None) -> Reading:
    """Reads one reply.

    Args:
        status: HTTP status, None when there was no response.
        raw: the body.
        problem: without a response, what happened (`timeout`, `dropped`, `unreachable`).
    """
    if status is None:
        # After a timeout the answer may have been produced and charged, and a slow server is not
        # helped by asking again: left to `--retry error`. The other two delivered nothing.
        return Reading("error", settled=problem == "timeout", detail=problem)
    body = _parse(raw)
    if 200 <= status < 300:
        return _read_completion(body)
    return _read_refused_request(status, body, raw or b"")


def _parse(raw: bytes | None):
    try:
        return json.loads(raw or b"")
    except (ValueError, RecursionError):
        return None


def _read_completion(body) -> Reading:
    def not_a_completion(detail: str) -> Reading:
        return Reading("error", settled=True, detail=f"status 200, but {detail}")

    if not isinstance(body, dict):
        return not_a_completion("the body is not a JSON object")
    if body.get("error"):
        return not_a_completion(f"an error inside: {_message(body)}")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return not_a_completion("there are no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return not_a_completion("the choice holds no message")

    reasoning, answer, marked = split_answer(_text(message.get("content")))
    apart = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    details = usage.get("prompt_tokens_details")
    finish = choice.get("finish_reason")
    refusal = _text(message.get("refusal"))
    if finish == "content_filter":
        outcome = "filtered"
    elif refusal or is_refusal(answer):
        outcome = "refused"
        answer = answer or refusal
    elif finish == "length":
        outcome = "truncated"
    else:
        outcome = "ok" if answer else "empty"
    return Reading(
        outcome,
        settled=True,
        answer=answer or None,
        reasoning="\n\n".join(part for part in (apart, reasoning) if part) or None,
        marked=marked,
        finish_reason=finish if isinstance(finish, str) else None,
        returned_model=body.get("model") if isinstance(body.get("model"), str) else None,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else None,
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _read_refused_request(status: int, body, raw: bytes) -> Reading:
    """A response whose status says that there is no completion."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    codes = {str(error.get("code")), str(error.get("type"))}
    text = _message(body) or raw[:300].decode(errors="replace")
    detail = f"status {status}: {text}"

    def stop(advice: str) -> Reading:
        return Reading("error", settled=False, detail=detail, stop=f"{detail}. {advice}")

    if codes & QUOTA_CODES or status == 402:
        return stop("The account has no quota left: top it up or use another key, then rerun.")
    if status == 401:
        return stop("The key was not accepted: check the variable that --api-key-env names.")
    if status == 403:
        return stop("The key may not use this model: check its rights, or use another model.")
    if status in (404, 405):
        return stop("Check --teacher-model (GET /models lists the names) and --endpoint.")
    if 300 <= status < 400:
        return stop("The endpoint redirects elsewhere: give the final address as --endpoint.")
    if codes & FILTER_CODES:
        return Reading("filtered", settled=True, detail=detail)
    if codes & PARAMETER_CODES:
        return stop("The model refuses a parameter: choose another --profile.")
    if status in TRANSIENT or status >= 500:
        return Reading("error", settled=False, throttled=status == 429, detail=detail)
    return Reading("error", settled=True, detail=detail)


def split_answer(content: str) -> tuple[str, str, bool]:
    """A completion's text as (reasoning, answer, marked).

    The answer stands between `<answer>` and `</answer>` (the last pair; a missing end means the
    end of the text), or after a line that begins with "Answer:" or "Final answer:". Without
    either the whole text is the answer and `marked` is False. `<think>` blocks, which some models
    emit by themselves, are reasoning.
    """
    thoughts = re.findall(r"<think>(.*?)(?:</think>|\Z)", content, re.DOTALL)
    rest = re.sub(r"<think>.*?(?:</think>|\Z)", "", content, flags=re.DOTALL)
    if "</think>" in rest:  # the template opened the block in the prompt
        thought, _, rest = rest.rpartition("</think>")
        thoughts.append(thought)
    before, tag, after = rest.rpartition("<answer>")
    if tag:
        answer = after.partition("</answer>")[0]
    else:
        heading = re.search(
            r"^[ \t#*]*(?:final )?answer[ \t*]*:[ \t*]*", rest, re.IGNORECASE | re.MULTILINE
        )
        before, answer = (rest[: heading.start()], rest[heading.end() :]) if heading else ("", rest)
        tag = heading
    thoughts.append(before)
    reasoning = "\n\n".join(thought.strip() for thought in thoughts if thought.strip())
    return reasoning, answer.strip(), bool(tag)


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer (English phrases that models use for it)."""
    text = text.strip()
    return len(text) <= REFUSAL_LENGTH and any(pattern.search(text) for pattern in REFUSALS)


def _text(value) -> str:
    """Message content as a string; some servers send a list of parts."""
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _message(body) -> str | None:
    error = body.get("error", body) if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message[:300].rstrip(". ") if isinstance(message, str) else None


def _count(value) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
