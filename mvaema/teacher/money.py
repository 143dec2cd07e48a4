"""What answers cost: prices, tokens per request, and a budget.

What is special about it:
- prices come from a dated file that the user can edit; an unknown price is reported as unknown;
- tokens are given twice, expected and at most: assumed at first, measured later;
- the budget reserves the worst case of every request in flight. What is the worst is learned from
  the replies, since nobody knows beforehand how many tokens a server counts for an image.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

# The rendered prompt, and (width, height) of the image in pixels.
Request = tuple[str, tuple[int, int]]

STANDARD_PRICES = Path(__file__).with_name("prices.yaml")

# Until replies were measured. English text has about 4 characters per token, and no tokenizer in
# use averages fewer than 2.
CHARACTERS_PER_TOKEN, FEWEST_CHARACTERS_PER_TOKEN = 4.0, 2.0
# Reasoning and answer together.
ASSUMED_OUTPUT_TOKENS = 400
# Qwen2-VL and its successors: one token per 28 x 28 pixels. Where the prices file has no rule for
# a model, its images are assumed to take at most IMAGE_SAFETY times as many.
DEFAULT_IMAGE_RULE = {"rule": "patches", "size": 28}
IMAGE_SAFETY = 2.0


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens of one model."""

    input: float
    output: float
    cached_input: float
    batch: float  # factor on everything through the Batch API
    image: dict | None
    as_of: str
    source: str

    def cost(self, prompt: float, cached: float, completion: float, *, batch: bool) -> float:
        """US dollars for so many tokens. `cached` of the prompt tokens came from a prefix cache."""
        dollars = (prompt - cached) * self.input + cached * self.cached_input
        dollars += completion * self.output
        return dollars / 1e6 * (self.batch if batch else 1)


def load_price(model: str, path: str | Path | None = None) -> Price | None:
    """The price of a model; None when the file does not have it.

    A dated name ("gpt-4o-2024-08-06") that is not listed has the price of the name without its
    date.

    Args:
        path: a prices file; mvaema/teacher/prices.yaml by default.

    Raises:
        ValueError: the file cannot be read, or the model's entry is not a price.
    """
    path = Path(path or STANDARD_PRICES)
    try:
        models = yaml.safe_load(path.read_text(encoding="utf-8"))["models"]
        entry = models.get(model) or models.get(re.sub(r"-\d{4}-?\d{2}-?\d{2}$", "", model))
        if entry is None:
            return None
        price = Price(
            input=float(entry["input"]),
            output=float(entry["output"]),
            cached_input=float(entry.get("cached_input", entry["input"])),
            batch=float(entry.get("batch", 1)),
            image=entry.get("image"),
            as_of=str(entry.get("as_of", "an unknown date")),
            source=str(entry.get("source", "an unknown source")),
        )
        count_image_tokens((1, 1), price.image or DEFAULT_IMAGE_RULE)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: the price of {model} cannot be read ({type(error).__name__}: {error}). "
            f"Expected `models: {{{model}: {{input: ..., output: ..., as_of: ...}}}}`, in US "
            "dollars per million tokens."
        ) from error
    return price


def count_image_tokens(size: tuple[int, int], rule: dict) -> int:
    """Tokens of an image of (width, height) pixels.

    The rule `tiles` is OpenAI's for high detail: fit into 2048 x 2048, shorter side to 768, tiles
    of 512 pixels. The rule `patches` counts squares, up to a cap.

    Raises:
        ValueError: there is no such rule.
    """
    width, height = size
    if rule.get("rule") == "patches":
        patches = math.ceil(width / rule["size"]) * math.ceil(height / rule["size"])
        return math.ceil(min(patches, rule.get("cap", math.inf)) * rule.get("factor", 1))
    if rule.get("rule") == "tiles":
        scale = min(1, 2048 / max(size))
        scale = min(scale, 768 / min(size))
        tiles = math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
        return rule["base"] + rule["tile"] * tiles
    raise ValueError(f"the image rule must be tiles or patches, got {rule!r}")


@dataclass
class Measured:
    """Sums over the replies in a journal whose usage the server stated, in tokens and seconds."""

    replies: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    longest_prompt: int = 0
    longest_completion: int = 0
    latency_s: float = 0.0

    @classmethod
    def of(cls, journal) -> "Measured":
        [row] = journal.query(
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0), "
            "coalesce(sum(completion_tokens), 0), coalesce(max(prompt_tokens), 0), "
            "coalesce(max(completion_tokens), 0), coalesce(sum(latency_s), 0) "
            "FROM replies WHERE prompt_tokens IS NOT NULL AND completion_tokens IS NOT NULL"
        )
        return cls(*row)


class Meter:
    """Tokens and cost of single requests: assumed first, then as measured.

    A request is (text, size): the rendered prompt, and (width, height) of the image in pixels.

    Args:
        price: of the model, or None.
        max_tokens: output limit of every request.
        batch: whether the Batch API's price applies.
        measured: what the journal knows already.
        longest: the request in the journal whose prompt had most tokens; None where that is
            unknown.

    Attributes:
        known: whether a reply has shown what a request costs, or that the server does not say.
    """

    def __init__(
        self,
        price: Price | None,
        max_tokens: int,
        batch: bool,
        measured: Measured,
        longest: Request | None = None,
    ):
        self.price, self.max_tokens, self.batch = price, max_tokens, batch
        self.measured = measured
        # Assumed tokens of the largest request whose real ones are known.
        self._largest = self._assumed_worst(*longest) if longest is not None else 0.0
        self.known = longest is not None

    def add(
        self, prompt: int, cached: int, completion: int, request: Request | None = None
    ) -> bool:
        """Learn from the usage of one completion, the reply to `request`. Returns whether the
        worst case of other requests has changed."""
        m = self.measured
        before = (m.longest_prompt, m.longest_completion, self._largest)
        m.replies += 1
        m.prompt += prompt
        m.cached += cached
        m.completion += completion
        m.longest_prompt = max(m.longest_prompt, prompt)
        m.longest_completion = max(m.longest_completion, completion)
        if request is not None:
            self._largest = max(self._largest, self._assumed_worst(*request))
            self.known = True
        return before != (m.longest_prompt, m.longest_completion, self._largest)

    def expected_tokens(self, text: str, size: tuple[int, int]) -> tuple[float, float, float]:
        """(prompt, cached, completion) tokens of a typical request."""
        m = self.measured
        if m.replies:
            return m.prompt / m.replies, m.cached / m.replies, m.completion / m.replies
        image = count_image_tokens(size, self._image_rule)
        output = min(ASSUMED_OUTPUT_TOKENS, self.max_tokens)
        return image + len(text) / CHARACTERS_PER_TOKEN, 0, output

    def worst_tokens(self, text: str, size: tuple[int, int]) -> tuple[float, float, float]:
        """As `expected_tokens`, at most: the longest prompt seen, and in proportion more for a
        request that is larger than all whose usage is known."""
        assumed = self._assumed_worst(text, size)
        larger = max(1.0, assumed / self._largest) if self._largest else 1.0
        prompt = max(assumed, self.measured.longest_prompt * larger)
        return prompt, 0, max(self.max_tokens, self.measured.longest_completion)

    def _assumed_worst(self, text: str, size: tuple[int, int]) -> float:
        """Prompt tokens at most, by the rules of models that we know."""
        image = count_image_tokens(size, self._image_rule) * IMAGE_SAFETY
        return image + len(text) / FEWEST_CHARACTERS_PER_TOKEN

    @property
    def _image_rule(self) -> dict:
        return (self.price and self.price.image) or DEFAULT_IMAGE_RULE

    def cost(self, prompt: float, cached: float, completion: float) -> float | None:
        """US dollars, None when the price is unknown."""
        if self.price is None:
            return None
        return self.price.cost(prompt, cached, completion, batch=self.batch)

    def worst_cost(self, text: str, size: tuple[int, int]) -> float | None:
        """US dollars of a request, at most; None when the price is unknown."""
        return self.cost(*self.worst_tokens(text, size))

    def longest_cost(self) -> float | None:
        """US dollars of the longest prompt seen and a full answer; None when the price is
        unknown."""
        return self.cost(self.measured.longest_prompt, 0, self.max_tokens)


def may_be_charged(status: int | None, problem: str | None) -> bool:
    """Whether an attempt may have cost something although its usage was not stated."""
    return problem in ("timeout", "dropped", "lost") or (status is not None and 200 <= status < 300)


def spent(journal, price: Price | None, max_tokens: int) -> float | None:
    """US dollars that the replies in a journal cost; None when the price is unknown.

    An attempt that may have been charged although its usage was not stated counts as the longest
    prompt in the journal and a full answer.
    """
    if price is None:
        return None
    rows = journal.query(
        "SELECT batch IS NOT NULL AS batched, status, problem, "
        "coalesce(sum(prompt_tokens), 0) AS prompt, coalesce(sum(cached_tokens), 0) AS cached, "
        "coalesce(sum(completion_tokens), 0) AS completion, "
        "sum(completion_tokens IS NULL) AS unstated, coalesce(max(prompt_tokens), 0) AS longest "
        "FROM replies GROUP BY batched, status, problem"
    )
    total = 0.0
    for batched in (0, 1):
        group = [row for row in rows if row["batched"] == batched]
        longest = max((row["longest"] for row in group), default=0)
        for row in group:
            unsure = row["unstated"] * may_be_charged(row["status"], row["problem"])
            total += price.cost(
                row["prompt"] + unsure * longest,
                row["cached"],
                row["completion"] + unsure * max_tokens,
                batch=bool(batched),
            )
    return total


class Budget:
    """Money spent and reserved, in US dollars, under a limit (None: no limit)."""

    def __init__(self, limit: float | None, spent: float = 0.0):
        self.limit, self.spent, self.reserved = limit, spent, 0.0
        self.open = 0  # reservations

    def reserve(self, worst: float | None) -> bool:
        """Reserve the worst case of a request. False when the limit could be exceeded."""
        total = self.spent + self.reserved + (worst or 0.0)
        if self.limit is not None and total > self.limit:
            return False
        self.hold(worst)
        return True

    def hold(self, worst: float | None):
        """Reserve the cost of something that was submitted already, limit or not."""
        self.reserved += worst or 0.0
        self.open += 1

    def revalue(self, before: float | None, worst: float | None):
        """The worst case of an open reservation is another than it was believed to be."""
        self.reserved += (worst or 0.0) - (before or 0.0)

    def merge(self, count: int):
        """Turn the last `count` reservations into one, to be settled together."""
        self.open -= count - 1

    def exhausted(self) -> str:
        """Why nothing more can be asked, and what to do."""
        text = f"--max_cost: {dollars(self.spent)} of {dollars(self.limit)} is spent"
        if self.spent > self.limit:
            return (
                f"{text}: requests cost more than was known when they were sent. Nothing more is "
                "sent. Raise it to ask more."
            )
        return f"{text}, and one more answer could exceed the limit. Raise it to ask more."

    def settle(self, worst: float | None, actual: float | None):
        """A request is over: release its reservation and book what it cost."""
        self.open -= 1
        self.reserved = self.reserved - (worst or 0.0) if self.open else 0.0
        self.spent += actual or 0.0


def dollars(amount: float | None) -> str:
    """An amount as text; "unknown" for None."""
    if amount is None:
        return "unknown"
    return f"${amount:,.2f}" if amount >= 1 or amount == 0 else f"${amount:.4f}"
