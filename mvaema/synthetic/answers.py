"""Truthful answers to the ten question groups, written from the facts of a scene.

What is special about it:
- answers state only what the image shows: lengths in nanometres only if a scale bar is visible,
  else as a percentage of the image width; a tilt only if it changes the picture;
- the wording varies with the seed, the facts do not;
- every set of answers says that the image is simulated.
"""

import numpy as np

from mvaema.synthetic.specimen import Facts
from mvaema.synthetic.vocabulary import KINDS
from mvaema.synthetic.wording import Writer, plural, two_digits

# Noise, in grey levels, that can be seen, and that hides detail.
NOISY, VERY_NOISY = 7.0, 16.0
SOFT_PX = 1.2


def _basics(w: Writer) -> str:
    what = w.say(*w.kind.names)
    first = w.say(
        f"The image shows {what}.",
        f"This micrograph shows {what}.",
        f"The material is {what}.",
        f"What can be seen is {what}.",
    )
    if w.scale_bar is None:
        return f"{first} " + w.say(
            "No scale bar is visible, so a real-world length cannot be stated.",
            "There is no scale bar in the image that states a length.",
            "A scale bar is missing, and so no absolute length is given.",
        )
    return f"{first} " + w.say(
        f"The scale bar marks {w.scale_bar}.",
        f"Its scale bar states a length of {w.scale_bar}.",
        f"The bar printed in the image stands for {w.scale_bar}.",
    )


def _uniformity(w: Writer) -> str:
    f = w.facts
    if f.size_std_nm is None or (f.count or 0) < 3 or not f.size_mean_nm:
        return ""
    relative = f.size_std_nm / f.size_mean_nm
    if relative < 0.07:
        return w.say(
            "Size and shape are very uniform.",
            "They are nearly identical in size.",
            "Their size is highly consistent.",
        )
    if relative < 0.2:
        return w.say(
            "Size and shape are fairly uniform.",
            "Sizes differ only moderately.",
            "They are fairly consistent in size.",
        )
    return w.say(
        "The size varies strongly.",
        "Large and small ones are mixed.",
        "Sizes are not uniform; small and large {units} occur together.",
    )


def _morphology(w: Writer) -> str:
    f = w.facts
    parts = [w.say(*w.kind.shapes)]
    if f.kind == "section":
        layers = "1 layer lies" if f.count == 1 else f"{f.count} layers lie"
        parts.append(w.say(f"{layers} on the substrate.", f"In all, {layers} above the substrate."))
    elif f.angle_deg and f.kind in ("cone", "blunt_cone"):
        parts.append(
            w.say(
                f"Its full opening angle is about {two_digits(f.angle_deg)} degrees.",
                f"The flanks enclose about {two_digits(f.angle_deg)} degrees.",
            )
        )
    parts.append(_uniformity(w))
    if f.tilt_deg > 5 and w.kind.tilt_shows:
        parts.append(
            w.say(
                "The specimen is seen at a tilt.",
                f"The view is tilted by about {round(f.tilt_deg / 5) * 5} degrees.",
            )
        )
    if len([p for p in parts if p]) < 2:
        parts.append(
            w.say(
                "No separate layers or phases are visible.",
                "Separate layers, phases or domains cannot be seen.",
            )
        )
    return " ".join(p for p in parts if p)


_ARRANGEMENTS = {
    "random": (
        "They are distributed at random.",
        "Their distribution is random.",
        "No order is seen in their arrangement.",
    ),
    "clustered": (
        "They gather in clusters.",
        "They are aggregated into groups.",
        "Most belong to clusters, with free ground between.",
    ),
    "ordered": (
        "They are evenly distributed.",
        "They repeat regularly over the field.",
        "Their distribution is regular and ordered.",
    ),
    "aligned": ("They run in about the same direction.", "They are aligned along one direction."),
    "packed": ("They are closely packed over the field.", "They cover the field in dense packing."),
    "stacked": ("They are stacked on one another.", "They lie one above the other."),
    "single": ("No aggregation is seen.", "There is nothing that aggregates or bundles."),
}


def _size_distribution(w: Writer) -> str:
    f = w.facts
    parts = []
    if f.size_mean_nm:
        size, name = w.length(f.size_mean_nm), f.dimension
        one = f.count == 1 or f.count is None or f.size_std_nm in (None, 0.0)
        mean = "" if one else "mean "
        parts.append(
            w.say(
                f"The {mean}{name} is about {size}.",
                f"With a {mean}{name} of about {size}, the structures are clearly resolved."
                if f.blur_px < SOFT_PX and f.noise_grey < NOISY
                else f"The {mean}{name} comes to about {size}.",
                f"Roughly {size} is the {mean}{name}.",
            )
        )
        if not one and f.size_std_nm > 0.1 * f.size_mean_nm and f.count >= 5:
            parts.append(
                w.say(
                    f"It ranges from {w.span(f.size_min_nm, f.size_max_nm)}.",
                    f"The range is {w.span(f.size_min_nm, f.size_max_nm)}.",
                    f"Its standard deviation is about {w.length(f.size_std_nm)}.",
                )
            )
    else:
        parts.append(
            w.say(
                "There are no separate structures whose size could be stated.",
                "No single structures stand out that could be measured.",
            )
        )
    if f.count and w.kind.units not in ("tips", "shells", "layers"):
        number = w.number()
        be = "is" if f.count == 1 else "are"
        parts.append(
            w.say(
                f"In view {be} {number}.",
                f"There {be} {number} visible.",
                f"The field holds {number}.",
            )
        )
    pitch = f.spacing_nm if f.kind != "wrinkled" else None  # there it is the size
    if f.length_nm and w.kind.length and (not pitch or w.rng.random() < 0.5):
        parts.append(f"The {w.kind.length} is about {w.length(f.length_nm)}.")
    elif pitch:
        pitch = w.length(pitch)
        parts.append(
            f"The rows of pores repeat about every {pitch}."
            if f.kind == "diatom"
            else w.say(f"The pitch is about {pitch}.", f"They repeat every {pitch}.")
        )
    parts.append(w.say(*_ARRANGEMENTS[f.arrangement]))
    return " ".join(parts)


def _surface(w: Writer) -> str:
    f = w.facts
    first = w.say(*w.kind.surfaces)
    if w.kind.texture and f.rough:
        first = w.say("The surface is finely rough.", "A fine roughness covers the {units}.")
    found = []
    if f.missing:
        found.append(
            plural(f.missing, "place of the pattern is empty", "places of the pattern are empty")
        )
    if f.broken:
        found.append(
            {
                "wires_from_above": plural(
                    f.broken, "wire has fallen over", "wires have fallen over"
                ),
                "spun": plural(
                    f.broken,
                    "bead-like swelling sits on the fibres",
                    "bead-like swellings sit on the fibres",
                ),
                "plain": plural(
                    f.broken, "scratch crosses the surface", "scratches cross the surface"
                ),
                "insect_eye": plural(
                    f.broken,
                    "bristle stands between the lenses",
                    "bristles stand between the lenses",
                ),
            }[f.kind]
        )
    if f.debris:
        found.append(plural(f.debris, "speck of debris lies on it", "specks of debris lie on it"))
    if f.pore_fraction:
        percent = two_digits(100 * f.pore_fraction)
        what = {"cracked": "Cracks take up"}.get(f.kind, "Openings take up")
        first += " " + w.say(
            f"{what} about {percent} percent of the area.",
            f"About {percent} percent of the area is open."
            if f.kind != "cracked"
            else f"{what} some {percent} percent of the area.",
        )
    if found:
        text = " and ".join(found) + "."
        return f"{first} {text[0].upper()}{text[1:]}"
    return f"{first} " + (
        w.say(
            "No further defects or impurities are visible.",
            "Apart from that, no impurities are seen.",
        )
        if f.pore_fraction or f.kind in ("pinholes", "cracked")
        else w.say(
            "No cracks or impurities are visible.",
            "Defects or impurities cannot be seen.",
            "It shows no obvious defects or foreign matter.",
        )
    )


def _composition(w: Writer) -> str:
    f = w.facts
    if f.technique != "SEM":
        first = _transmitted_contrast(w)
    elif f.kind == "section":
        first = w.say(
            "The layers differ in brightness, which hints at different materials.",
            "Different grey levels of the layers suggest different compositions.",
        )
    elif f.two_materials == "brighter":
        first = w.say(
            "The {units} are brighter than the ground, which suggests another material.",
            "Brighter {units} on a darker ground hint at two different materials.",
        )
    elif f.two_materials == "darker":
        first = w.say(
            "The {units} are darker than the ground, which suggests another material.",
            "Darker {units} on a brighter ground hint at two different materials.",
        )
    elif f.kind == "grains":
        first = w.say(
            "Grey levels vary from grain to grain, as with crystal orientation.",
            "Grains of different brightness suggest orientation rather than composition.",
        )
    elif f.detector == "BSE":
        first = w.say(
            "Backscattered electrons show composition, and no second phase stands out.",
            "In backscattered contrast the {units} look alike, so one material is likely.",
        )
    else:
        first = w.say(
            "Bright edges and darker hollows reflect topography, so one material is likely.",
            "Contrast comes mainly from edges and slopes, without a sign of a second material.",
            "Grey levels follow the shape, and no variation in composition is suggested.",
            "Brightness follows slopes and rims, which does not hint at a second phase.",
        )
    return f"{first} " + w.say(
        "No label or marker names an element or compound.",
        "There is no label that names an element.",
        "No element or compound is named by any label.",
        "Labels that name an element or compound are absent.",
    )


def _transmitted_contrast(w: Writer) -> str:
    """What grey levels mean in a projection."""
    f = w.facts
    if f.technique == "STEM":
        return w.say(
            "Bright regions are thicker or made of heavier elements, as dark-field contrast shows.",
            "Brightness grows with thickness and atomic number.",
        )
    if f.kind == "virus":
        return w.say(
            "The stain is dark, and the unstained {units} are brighter.",
            "Heavy stain around the {units} absorbs more than they do.",
        )
    if f.two_materials == "darker":
        return w.say(
            "The {units} are darker than the support, because they are thicker or denser.",
            "Darker {units} on a bright support absorb and scatter more of the beam.",
        )
    return w.say(
        "Dark regions are thicker, denser or more strongly stained.",
        "Grey levels follow mass and thickness, so darker regions scatter more.",
    )


def _interfaces(w: Writer) -> str:
    f = w.facts
    if w.kind.contact:
        first = w.say(*w.kind.contact)
    elif f.count == 1:
        first = w.say(
            "There is a single object, which touches no other of its kind.",
            "The only object in view stands alone.",
        )
    elif f.touching is None or f.touching < 0.1:
        first = w.say(
            "Nearly all {units} stay separate from each other.",
            "The {units} do not touch, apart from rare exceptions.",
        )
    elif f.touching < 0.4:
        percent = two_digits(100 * f.touching)
        first = w.say(
            "Most {units} stay separate, but some touch or overlap.",
            f"About {percent} percent of the {{units}} touch or overlap a neighbour.",
        )
    elif f.touching < 0.8:
        percent = two_digits(100 * f.touching)
        first = w.say(
            "Many {units} touch or overlap in the image, others stay separate.",
            f"About {percent} percent of the {{units}} touch or overlap others.",
        )
    else:
        first = w.say(
            "Nearly all {units} touch or overlap others in the image.",
            "The {units} lie against or across each other; hardly any is free.",
        )
    if f.blur_px > SOFT_PX:
        second = w.say(
            "Boundaries look soft because the image is blurred.",
            "The blur of the image softens all boundaries.",
        )
    elif f.noise_grey > VERY_NOISY:
        second = w.say(
            "Strong noise makes the boundaries hard to follow.",
            "Boundaries are broken up by strong noise.",
        )
    else:
        second = w.say(
            "Boundaries are distinct rather than blended.",
            "Boundaries can be made out clearly."
            if f.technique != "SEM"
            else "Bright edges make the boundaries distinct.",
            "Outlines can be followed clearly.",
        )
    return f"{first} {second}"


def _environment(w: Writer) -> str:
    f = w.facts
    if w.kind.fills_field:
        ground = w.say(
            "The material fills the whole field, so no substrate can be seen.",
            "No substrate is visible, since the material covers the field.",
        )
    elif f.substrate:
        ground = w.say(*(w.kind.ground or ["The {units} lie on a plain substrate."]))
    else:
        ground = w.say("Hardly any ground can be seen between the {units}.")
    parts = [ground]
    if f.debris:
        parts.append(
            w.say(
                f"{plural(f.debris, 'small speck', 'small specks')} of debris do not "
                "belong to the material."
                if f.debris > 1
                else "1 small speck of debris does not belong to the material."
            )
        )
    if f.charging:
        parts.append(
            w.say(
                "Streaks and glow show that charge builds up under the beam.",
                "Charging by the beam shows as streaks along the scan lines.",
            )
        )
    if w.scale_bar:
        parts.append(
            w.say(
                "The scale bar and its text are overlays.",
                "Printed bar and text are not part of the material.",
            )
        )
    elif len(parts) < 2 and not f.marks:
        parts.append(
            w.say(
                "No labels, debris or other foreign objects are present.",
                "Nothing foreign, such as debris or labels, is seen.",
            )
        )
    if len(" ".join(parts).split()) < 15:
        parts.append(
            w.say(
                "There is no sign of a reaction with the surroundings.",
                "No interaction with the surroundings is apparent.",
            )
        )
    return " ".join(parts)


_TECHNIQUES = {
    "SEM": (
        "This is a simulated scanning electron (SEM) image in greyscale, not a real recording.",
        "The image imitates secondary-electron SEM; it was computed, not recorded.",
        "It looks like a secondary-electron SEM image, but it is synthetic.",
    ),
    "TEM": (
        "This is a simulated bright-field TEM image in greyscale, not a real recording.",
        "The image imitates transmission electron microscopy (TEM); it was computed, not recorded.",
        "It looks like a bright-field TEM image, but it is synthetic.",
    ),
    "STEM": (
        "This is a simulated dark-field STEM image in greyscale, not a real recording.",
        "The image imitates HAADF-STEM; it was computed, not recorded.",
        "It looks like a dark-field STEM image, but it is synthetic.",
    ),
}


def _imaging(w: Writer) -> str:
    f = w.facts
    first = w.say(*_TECHNIQUES[f.technique])
    if f.detector == "BSE":
        first = first.replace("secondary-electron", "backscattered-electron")
        first = first.replace("scanning electron (SEM)", "backscattered-electron SEM")
    if f.noise_grey > VERY_NOISY:
        quality = w.say("It is very noisy", "Noise is strong")
    elif f.noise_grey > NOISY:
        quality = w.say("It is grainy with noise", "Noise is visible")
    else:
        quality = w.say("It has little noise", "Noise is low")
    if f.blur_px > SOFT_PX:
        quality += w.say(" and looks blurred", " and the focus is soft")
    if f.charging:
        quality += w.say(", with charging streaks", ", and charging artefacts appear")
    if f.bar:
        printed = f" with {', '.join(f.printed)}" if f.printed else ""
        where = [] if f.bar == "overlay" else [f"a {f.bar}{printed}"]
        *first_ones, final = [*where, "a scale bar", *f.marks]
        what = f"{', '.join(first_ones)} and {final}" if first_ones else final
        last = w.say(f"Annotated by {what}.", f"There is {what}.")
    elif f.marks:
        what = " and ".join(f.marks)
        last = w.say(f"Printed over it: {what}.", f"Annotated by {what}, without a scale bar.")
    else:
        last = w.say("There is no annotation or info bar.", "No bar or label has been added.")
    return f"{first} {quality}. {last}"


def _function(w: Writer) -> str:
    return (
        w.say(*w.kind.parts)
        + " "
        + w.say(
            "The image shows a static state, not a process.",
            "It is a static image without signs of motion.",
            "Nothing points to a process; the state is static.",
            "A static state is shown.",
        )
    )


def _application(w: Writer) -> str:
    use = w.say(*w.kind.uses)
    subject = w.say("Such a specimen", "A material like this", "This kind of structure")
    return f"{subject} could be used {use}. " + w.say(
        "The image is a simulated micrograph, not an experimental one.",
        "It is simulated: a synthetic microscope rendered it.",
        "The micrograph is synthetic, rendered by a simulation rather than measured.",
    )


WRITERS = {
    "basics": _basics,
    "morphology": _morphology,
    "size_distribution": _size_distribution,
    "surface": _surface,
    "composition": _composition,
    "interfaces": _interfaces,
    "environment": _environment,
    "imaging": _imaging,
    "function": _function,
    "application": _application,
}


def answer_all(facts: Facts, scale_bar: str | None, rng: np.random.Generator) -> dict[str, str]:
    """Answers to the ten question groups (id -> text) for an image with these facts."""
    writer = Writer(facts, KINDS[facts.kind], scale_bar, rng)
    answers = {}
    for question_id, write in WRITERS.items():
        writer.width_named = False
        answers[question_id] = write(writer)
    return answers
