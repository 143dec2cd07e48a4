"""Fields of a request's body, of the right kind; a wrong value is never repeated to the client."""

import math

from mvaema.serving.refusals import bad_request


def typed_in(body: dict, name: str, kind: type, wanted: str):
    """The value of a field, None where it is absent or empty.

    Raises:
        Refusal: it is of another type; `wanted` says of which it should be.
    """
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise bad_request(f"{name} must be {wanted}.", name)
    return value or None


def number_in(body: dict, name: str, low: float, high: float) -> float | None:
    """A number within limits, None where it is absent.

    Raises:
        Refusal: it is something else.
    """
    value = body.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or not math.isfinite(value):
        raise bad_request(f"{name} must be a number from {low:g} to {high:g}.", name)
    return float(value)


def whole_in(body: dict, name: str, low: int, high: int) -> int | None:
    """A whole number within limits, None where it is absent.

    Raises:
        Refusal: it is something else.
    """
    value = number_in(body, name, low, high)
    if value is not None and not isinstance(body[name], int):
        raise bad_request(f"{name} must be a whole number.", name)
    return None if value is None else body[name]
