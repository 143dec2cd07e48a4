"""How a client wishes an answer to be decoded, in the options of `model.answer`.

What is special about it:
- temperature 0 is greedy. Another one draws the answer, except 1: that is the API's default, which
  front ends send without a wish, so the server's own decoding stays;
- `decoding` is a field beyond OpenAI's API: one of `DECODINGS`;
- `max_tokens` shortens an answer. It never makes it longer than the student's own limit.
"""

from dataclasses import dataclass

from candidates_mvaema import DECODINGS
from mvaema.serving.fields import number_in, whole_in
from mvaema.serving.refusals import bad_request

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Options:
    """What a request says about decoding; None where it says nothing.

    Attributes:
        decoding: one of `DECODINGS`.
        max_tokens: longest answer.
        temperature, top_p, seed: of answers that are drawn.
    """

    decoding: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    @classmethod
    def wished(cls, body: dict) -> "Options":
        """The options in a request's body.

        Raises:
            Refusal: a value is impossible.
        """
        decoding = body.get("decoding")
        if decoding is not None and decoding not in tuple(DECODINGS):
            raise bad_request(f"decoding must be one of {', '.join(DECODINGS)}.", "decoding")
        limits = [whole_in(body, n, 1, LARGEST) for n in ("max_tokens", "max_completion_tokens")]
        return cls(
            decoding,
            min((limit for limit in limits if limit is not None), default=None),
            number_in(body, "temperature", 0, 2),
            number_in(body, "top_p", 0, 1),
            whole_in(body, "seed", -LARGEST, LARGEST),
        )

    def of_answer(self, default: str, longest: int) -> dict:
        """The arguments of `model.answer`; `seed` is left out where any will do.

        Args:
            default: the server's own decoding.
            longest: answer of the student, in tokens.
        """
        asked = {n: getattr(self, n) for n in ("temperature", "top_p", "seed")}
        asked = {n: v for n, v in asked.items() if v is not None}
        drawn = {n: v for n, v in asked.items() if n != "seed" and v not in (0, 1)}
        decoding = self.decoding
        if decoding is None:
            certain = 0 in (self.temperature, self.top_p)
            decoding = "greedy" if certain else "sample" if drawn else default
            if decoding == "sample" and drawn:  # what is not said is as in OpenAI's API
                drawn = {"temperature": 1.0, "top_p": 1.0, **drawn}
        chosen = {**drawn, "seed": asked.get("seed")}
        chosen = {n: v for n, v in chosen.items() if n in DECODINGS[decoding] and v is not None}
        return {
            "decoding": decoding,
            "max_new_tokens": min(self.max_tokens or longest, longest),
            **chosen,
        }
