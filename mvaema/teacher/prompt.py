"""From an image and a question to a request, and the fingerprint that names it.

What is special about it:
- the wording is in `prompt.yaml`, versioned, and `--prompt FILE` replaces it;
- the image comes first in the request, so that a server's prefix cache holds it for all ten
  questions;
- the fingerprint covers everything that the answer depends on (prepared image, prompt, model,
  sampling) and nothing else. It leaves out endpoint and key, so replicas share answers.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from configuration_mvaema import QUESTIONS
from lengths_mvaema import format_length

STANDARD_PROMPT = Path(__file__).with_name("prompt.yaml")
PARTS = ("category", "scale", "scale_bar", "question", "instruction")

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True)
class Sampling:
    """How the teacher samples its answers, by default as in Srinivas et al. 2024."""

    temperature: float = 0.25
    top_p: float = 0.1
    max_tokens: int = 3500


# Request parameters by profile. For a model that refuses some of them, the user chooses another
# profile, which is recorded with the answers; nothing is dropped silently.
PROFILES = {
    "standard": lambda s: {
        "temperature": s.temperature,
        "top_p": s.top_p,
        "max_tokens": s.max_tokens,
    },
    # Servers that want the newer name of the token limit.
    "max-completion-tokens": lambda s: {
        "temperature": s.temperature,
        "top_p": s.top_p,
        "max_completion_tokens": s.max_tokens,
    },
    # Reasoning models that accept no sampling parameters.
    "reasoning": lambda s: {"max_completion_tokens": s.max_tokens},
}


def request_parameters(profile: str, sampling: Sampling) -> dict:
    """The sampling part of the request body.

    Raises:
        ValueError: there is no such profile.
    """
    if profile not in PROFILES:
        raise ValueError(f"--profile must be one of {', '.join(PROFILES)}, not {profile!r}.")
    return PROFILES[profile](sampling)


@dataclass(frozen=True)
class Prompt:
    """The wording of a prompt file."""

    version: str
    parts: dict[str, str]
    questions: dict[str, str]

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Prompt":
        """Read a prompt file, by default mvaema/teacher/prompt.yaml.

        Raises:
            ValueError: the file cannot be read, its keys are not those of a prompt file, or it has
                an unknown placeholder.
        """
        path = Path(path or STANDARD_PROMPT)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: the prompt file cannot be read ({error}).") from error
        expected = {"version", "questions", *PARTS}
        if not isinstance(content, dict) or set(content) != expected:
            found = set(map(str, content)) if isinstance(content, dict) else set()
            raise ValueError(
                f"{path}: a prompt file has exactly the keys {', '.join(sorted(expected))}. "
                f"Missing: {sorted(expected - found)}; unknown: {sorted(found - expected)}."
            )
        prompt = cls(
            version=str(content["version"]),
            parts={name: str(content[name]).strip() for name in PARTS},
            questions={**QUESTIONS, **(content["questions"] or {})},
        )
        example = {"caption": "", "scale_bar": "500 nm", "pixel_size_nm": 1.0}
        try:
            for question_id in prompt.questions:
                prompt.render(question_id, (1, 1), **example)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{path}: unknown placeholder {error}. For braces in the text, write {{{{ and }}}}."
            ) from error
        return prompt

    def digest(self) -> str:
        """16 hex digits of a hash over the whole wording, whatever its version says."""
        return _hash([self.version, self.parts, self.questions])[:16]

    def render(
        self,
        question_id: str,
        size: tuple[int, int],
        *,
        caption: str | None = None,
        pixel_size_nm: float | None = None,
        scale_bar: str | None = None,
    ) -> str:
        """The text that follows the image in the request; `size` is (width, height) in pixels."""
        parts = []
        if caption is not None:
            parts.append(self.parts["category"].format(caption=caption))
        if pixel_size_nm is not None:
            width, height = size
            parts.append(
                self.parts["scale"].format(
                    pixel_size=format_length(pixel_size_nm),
                    width=format_length(pixel_size_nm * width),
                    height=format_length(pixel_size_nm * height),
                )
            )
        if scale_bar is not None:
            parts.append(self.parts["scale_bar"].format(scale_bar=scale_bar))
        parts.append(self.parts["question"].format(question=self.questions[question_id]))
        parts.append(self.parts["instruction"].format())
        return "\n\n".join(parts)


def question_fingerprint(
    image_sha256: str, text: str, model: str, parameters: dict, version: str
) -> str:
    """32 hex digits that name one request, wherever it is sent."""
    return _hash([image_sha256, text, model, parameters, version])[:32]


def request_body(model: str, parameters: dict, file: Path, text: str) -> dict:
    """The Chat Completions request: the image, then the text, in one user message."""
    data = base64.b64encode(file.read_bytes()).decode()
    image = {"url": f"data:{MEDIA_TYPES[file.suffix]};base64,{data}"}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **parameters}


def _hash(value) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
