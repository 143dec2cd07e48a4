"""Where requests go and how: the arguments that all who ask a chat model share."""

from dataclasses import dataclass, field

from mvaema.teacher.prompt import Sampling


@dataclass(kw_only=True)
class RequestArguments:
    """An endpoint, what may be sent to it, how fast, and for how much."""

    endpoint: str | None = field(
        default=None,
        metadata={
            "help": "Base URL of an OpenAI-compatible server (vLLM, Ollama, llama.cpp, "
            "transformers serve, OpenAI, ...)."
        },
    )
    api_key_env: str | None = field(
        default=None,
        metadata={
            "help": "Environment variable that holds the key. By default OPENAI_API_KEY for an "
            "external endpoint, and no key for a private one."
        },
    )
    allow_external: bool = field(
        default=False,
        metadata={
            "help": "Permit an endpoint outside the private address ranges: micrographs leave "
            "the network."
        },
    )
    profile: str = field(
        default="standard",
        metadata={
            "help": "How parameters are passed: `standard`, `max-completion-tokens` (newer name "
            "of the limit), or `reasoning` (models that refuse temperature and top_p). Recorded "
            "with the answers."
        },
    )
    max_tokens: int = field(
        default=Sampling.max_tokens,
        metadata={"help": "Output tokens of one reply, at most, reasoning included."},
    )
    max_side: int = field(
        default=1024, metadata={"help": "Longer side of prepared images, in pixels."}
    )
    crop_info_bar: bool = field(
        default=False,
        metadata={
            "help": "Crop burnt-in info bars before sending (they may name lots and operators)."
        },
    )
    concurrency: int = field(
        default=64,
        metadata={
            "help": "Requests in flight, at most. Fewer are sent when the server answers 429."
        },
    )
    timeout: float = field(default=600.0, metadata={"help": "Seconds to wait for one reply."})
    prices: str | None = field(
        default=None, metadata={"help": "Prices file instead of mvaema/teacher/prices.yaml."}
    )
    max_cost: float | None = field(
        default=None,
        metadata={
            "help": "US dollars that all replies of this run or shard, earlier ones included, may "
            "cost together. One request is sent alone until its reply shows what a request costs; "
            "it may pass the limit. After that, the limit is passed only where requests cost more "
            "than any before, and by one request in flight each at most."
        },
    )


def check_positive(args: object, names: tuple[str, ...]) -> None:
    """Refuse fields that are stated and not positive.

    Raises:
        ValueError: the message names the first.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name} must be positive, not {value}.")
