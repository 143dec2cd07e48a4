"""A measurement in words: one sentence for a prompt, and the methods for a report.

What is special about it:
- every number has its unit, and a result without trust has no number;
- the methods name the steps that were really taken, with the packages and their versions.
"""

from importlib.metadata import PackageNotFoundError, version

from lengths_mvaema import format_length
from mvaema.measuring import quality
from mvaema.measuring.results import Measurement

_STEPS = {
    "particles": (
        "Particles were separated from their ground at the threshold of steepest edges after "
        "levelling, touching ones split at necks of the distance transform, and sized by the "
        "diameter of the circle of equal area"
    ),
    "pores": (
        "Pores were separated from the solid at the threshold of steepest edges after levelling, "
        "split at narrow necks, and sized by the diameter of the circle of equal area"
    ),
    "fibres": (
        "Fibres were separated from their ground at the threshold of steepest edges after "
        "levelling; widths were read across the skeleton from the grey levels, away from "
        "crossings and ends"
    ),
    "films": (
        "Layers were found as edges that run through the picture; their thickness is the median "
        "distance between edges over strips across the layers"
    ),
    "pattern": (
        "The pitch was taken from the peaks of the autocorrelation, interpolated between pixels"
    ),
}
_STANDING = (
    "Objects that stand out were cut at many thresholds, each at that of its own steepest edge; "
    "those whose outline is clear nearly all around were sized by the diameter of the circle of "
    "equal area, and all others left out"
)
_SOURCES = {
    "typed": "as entered by the operator",
    "recorded": "as recorded by the instrument",
    "read": "as read from the scale bar in the image",
}


def number(value: float) -> str:
    """A length with three significant digits, without an exponent."""
    text = f"{value:.3g}"
    return f"{float(text):.0f}" if "e" in text else text


def sentence(result: Measurement) -> str:
    """The result in one sentence, or that there is none and why."""
    if not result.trusted:
        return f"Not measured: {'; '.join(result.reasons)}."
    s, unit = result.statistics, result.unit
    median = f"{number(s.median)} {unit}"
    spread = f"{number(s.percentiles[5])}–{number(s.percentiles[95])} {unit} (5–95 %)"
    what = f"{result.count} {result.noun[result.count == 1]}"
    if result.count is None:
        what = result.noun[0]
    if result.kind == "films":
        if result.count == 1:
            return f"Measured: 1 layer, thickness {median}."
        thicknesses = [row[f"thickness_{unit}"] for row in result.objects]
        listed = ", ".join(number(value) for value in thicknesses)
        return f"Measured: {what}, thickness {listed} {unit}."
    if result.kind == "pattern":
        pitches = " and ".join(number(row[f"pitch_{unit}"]) for row in result.objects)
        return f"Measured: pitch {pitches} {unit}, {what} in view."
    if result.kind == "fibres":
        return f"Measured: {what}, median width {median}, {spread}."
    if result.kind == "pores":
        share = f", {100 * result.coverage:.0f} % of the area" if result.coverage else ""
        return f"Measured: {what}, median {median}, {spread}{share}."
    return f"Measured: {what}, median {median}, {spread}."


def facts(result: Measurement) -> str:
    """What `model.answer(..., measurements=...)` takes: the sentence, and what the bar states.

    "Measured: 143 particles, median 38 nm, 22–71 nm (5–95 %). Scale bar: 300 nm."
    """
    text = sentence(result)
    if result.scale_bar_nm is None:
        return text
    return f"{text} Scale bar: {format_length(result.scale_bar_nm)}."


def methods(result: Measurement) -> str:
    """How a result was obtained, to quote in a report."""
    if result.kind is None or not result.trusted:
        return f"No size is reported: {'; '.join(result.reasons)}."
    parts = [f"{_STANDING if result.partial else _STEPS[result.kind]}."]
    if result.partial:
        parts.append(
            f"The result was accepted because the median changes by less than "
            f"{100 * quality.MAX_MEDIAN_CHANGE:.0f} % when every second threshold is left out. "
            f"{result.count} {result.noun[result.count == 1]} were sized; how many there are in "
            "all is not known."
        )
    elif result.kind in ("particles", "pores", "fibres"):
        moved = f"{100 * quality.SHIFTS[1]:.0f} %"
        parts.append(
            f"The result was accepted because the median changes by less than "
            f"{100 * quality.MAX_MEDIAN_CHANGE:.0f} % when the threshold moves by {moved} of the "
            "contrast."
        )
    if result.kind in ("particles", "pores") and not result.partial:
        cut = result.seen - result.count
        parts.append(
            f"{result.count} {result.noun[result.count == 1]} were sized; {cut} cut by the border "
            "or by print count in the coverage only."
        )
    if result.pixel_size_nm is None:
        parts.append("No scale is known: lengths are in pixels of the image.")
    else:
        source = _SOURCES.get(result.scale_source, "as given")
        parts.append(f"One pixel is {result.pixel_size_nm:.4g} nm, {source}.")
    parts.append(f"Software: {_software()}.")
    return " ".join(parts)


def _software() -> str:
    names = []
    for package, title in (("mvaema", "MVaEMa"), ("scikit-image", "scikit-image")):
        try:
            names.append(f"{title} {version(package)}")
        except PackageNotFoundError:
            names.append(title)
    return ", ".join(names)
