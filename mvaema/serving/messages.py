"""A conversation in the form of Chat Completions to one question about one image.

What is special about it:
- a student answers one question about one micrograph. The question is the last message's text; the
  image is that message's, or the latest one before it, so that a chat can go on about an image.
  Earlier questions and answers, and system messages, are not shown to the student;
- images come inside the request. An address or a path is refused: nothing is fetched, and no file
  of the server is read;
- fields that change nothing here are ignored, as OpenAI's API ignores them. What would change an
  answer's meaning and is not there (tools, several choices, JSON, log-probabilities) is refused.
"""

from dataclasses import dataclass

from mvaema.serving.fields import number_in, typed_in
from mvaema.serving.options import Options
from mvaema.serving.refusals import Refusal, bad_request, unsupported

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

# Fields of OpenAI's API that a student has nothing for, with the values that ask for nothing.
UNSUPPORTED = {
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
}


@dataclass(frozen=True)
class Conversation:
    """What a request asks.

    Attributes:
        question: not blank.
        image: the data URI.
        caption, pixel_size_nm, scale_bar: what the client knows of the image.
        options: how to decode.
        stop: texts before which the answer ends.
        stream: whether the answer is to come in pieces.
        include_usage: whether the last of them says how many tokens there were.
    """

    question: str
    image: str
    caption: str | None
    pixel_size_nm: float | None
    scale_bar: str | None
    options: Options
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_conversation(body: dict, served: str, max_images: int) -> Conversation:
    """What a request asks.

    Args:
        body: of the request.
        served: the name of the student.
        max_images: most images in a conversation.

    Raises:
        Refusal: the request is malformed or asks for what a student does not do.
    """
    model = body.get("model", served)
    if model != served:
        raise Refusal(
            404,
            "model_not_found",
            f"this server has one model, {served!r}; GET /v1/models lists it.",
            "model",
        )
    for name, nothing in UNSUPPORTED.items():
        if not any(_same(body.get(name), value) for value in nothing):
            raise unsupported(name, f"{name} is not supported by this model; leave it out.")
    question, image = _question_and_image(body.get("messages"), max_images)
    streaming = typed_in(body, "stream_options", dict, "an object") or {}
    return Conversation(
        question=question,
        image=image,
        caption=typed_in(body, "caption", str, "a text"),
        pixel_size_nm=number_in(body, "pixel_size_nm", 1e-6, 1e9),
        scale_bar=typed_in(body, "scale_bar", str, 'a text such as "500 nm"'),
        options=Options.wished(body),
        stop=_stop(body.get("stop")),
        stream=bool(typed_in(body, "stream", bool, "true or false")),
        include_usage=streaming.get("include_usage") is True,
    )


def _same(given, value) -> bool:
    """Equality in JSON, where true is no number."""
    return given == value and isinstance(given, bool) == isinstance(value, bool)


def _question_and_image(messages, max_images: int) -> tuple[str, str]:
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a list with at least one message.", "messages")
    texts, image, count = "", None, 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise bad_request(f"{where} must be an object with a role of {ROLES}.", where)
        texts, images = _content(message.get("content"), message["role"], where)
        count += len(images)
        if len(images) > 1 and number == len(messages) - 1:
            raise bad_request(
                "the last message has several images and this model looks at one. Send a request "
                "for each.",
                where,
                "too_many_images",
            )
        if count > max_images:
            raise bad_request(
                f"the conversation has more than {max_images} images. Start a new one.",
                "messages",
                "too_many_images",
            )
        image = images[-1] if images else image
    if messages[-1]["role"] != "user":
        raise bad_request("the last message must have the role user: a question.", "messages")
    question = "\n".join(texts).strip()
    if not question:
        raise bad_request("the last message has no text: ask a question.", "messages")
    if image is None:
        raise bad_request(
            "this model answers questions about micrographs and the conversation has none. Attach "
            'an image: {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}.',
            "messages",
            "image_required",
        )
    return question, image


def _content(content, role: str, where: str) -> tuple[list[str], list[str]]:
    """The texts and the data URIs of a message."""
    if content is None and role != "user":  # an assistant that called a tool
        return [], []
    if isinstance(content, str):
        return [content], []
    if not isinstance(content, list):
        raise bad_request(f"{where}.content must be a text or a list of parts.", where)
    texts, images = [], []
    for number, part in enumerate(content):
        place = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            found = part.get("image_url")
            images.append(_data_uri(found.get("url") if isinstance(found, dict) else found, place))
        elif kind == "file":
            found = part.get("file")
            found = found.get("file_data") if isinstance(found, dict) else None
            images.append(_data_uri(found, place))  # what the client calls it is nobody's business
        elif kind == "refusal" and role == "assistant":
            continue
        else:
            raise bad_request(
                f"{place} must be a text, an image_url or a file with its data.", place
            )
    return texts, images


def _data_uri(value, place: str) -> str:
    if isinstance(value, str) and value[:5].lower() == "data:":
        return value
    raise bad_request(
        f"{place} must hold the image itself, as a data URI (data:image/png;base64,...). This "
        "server fetches no address and reads no path.",
        place,
        "image_not_inline",
    )


def _stop(value) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(t, str) for t in texts):
        raise bad_request("stop must be a text or a list of at most four.", "stop")
    return tuple(text for text in texts if text)
