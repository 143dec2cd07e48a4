"""Facts that an answer asserts, checked by hand."""

import pytest

from mvaema.evaluation.facts import extract_facts


def facts(text: str) -> set[str]:
    return {str(fact) for fact in extract_facts(text)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        ("Round nanoparticles.", {"shape: round", "structure: particle"}),
        ("Two rods.", {"structure: rod", "count: 2 rod"}),
        ("About 40 to 60 small grains.", {"structure: grain", "count: 40–60 grain"}),
        ("About ninety are randomly distributed.", {"count: 90", "arrangement: random"}),
        ("A bright-field TEM image.", {"technique: TEM"}),
        ("This scanning transmission electron micrograph", {"technique: STEM"}),
        ("a FIB-SEM cross-section", {"technique: FIB-SEM"}),
        ("a scanning electron microscope image", {"technique: SEM"}),
        ("The widths differ, and the shape is not uniform.", {"uniformity: varied"}),
        ("The boundaries are sharp.", {"boundary: distinct"}),
        ("Two distinct phases.", set()),  # nothing is said of a boundary
        (
            "It is an experimental image of a static state.",
            {"origin: experimental", "state: static"},
        ),
    ],
)
def test_words(text, expected):
    assert facts(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No cracks are visible.", {"presence: no crack"}),
        ("It is smooth, without cracks or visible pores.",
         {"surface: smooth", "presence: no crack", "presence: no pore"}),
        ("No databar, label or debris is visible.",
         {"presence: no databar", "presence: no label", "presence: no debris"}),
        ("The film is free of pores, and its surface is rough.",
         {"structure: film", "presence: no pore", "surface: rough"}),
        ("Cracks and pores are absent.", {"presence: no crack", "presence: no pore"}),
        ("Cracks are not clearly visible.", {"presence: no crack"}),
        ("The wires do not touch and are smooth.",
         {"structure: wire", "aggregation: no touching", "surface: smooth"}),
        ("The wires don't touch.", {"structure: wire", "aggregation: no touching"}),
        ("No grains touch.", {"aggregation: no touching"}),
        ("No fibres are visible.", {"structure: no fibre"}),
        ("No cracks are seen, but there are pores.", {"presence: no crack", "presence: pore"}),
        ("A non-porous, crack-free film.",
         {"presence: no pore", "presence: no crack", "structure: film"}),
        ("Not only cracks but also pores.", {"presence: crack", "presence: pore"}),
    ],
)  # fmt: skip
def test_negation(text, expected):
    assert facts(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A few mostly round grains.", {"shape: round", "structure: grain"}),
        ("Possibly cracks.", set()),
        ("The grains may be fused.", {"structure: grain"}),
        ("Such a powder could be used as a filler for films.", {"structure: particle"}),
        ("Needle-like and ball-shaped.", {"shape: elongated", "shape: round"}),
    ],
)
def test_what_is_only_supposed_or_said_of_a_use_is_no_fact(text, expected):
    assert facts(text) == expected


@pytest.mark.parametrize(
    ("british", "american"),
    [
        ("Grey fibres, 5 micrometres wide.", "Gray fibers, 5 micrometers wide."),
        ("Nanofibres and round discs", "Nanofibers and round disks"),
    ],
)
def test_both_spellings(british, american):
    assert facts(british) == facts(american) != set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The scale bar marks 1.5 µm.", {"presence: scale bar", "scale: 1500 nm"}),
        ("with a 200 nm scale bar", {"presence: scale bar", "scale: 200 nm"}),
        ("20 to 30 nm across at WD 7.8 mm", {"length: 20–30 nm"}),
        ("2 to 4 percent of the image width", {"share: 2–4 %"}),
        ("about one fiftieth of the field width", {"share: 2 %"}),
        ("one fortieth to one quarter of the field", {"share: 2.5–25 %"}),
        ("5.0 kV and x30,000", set()),
    ],
)
def test_quantities(text, expected):
    assert facts(text) == expected


def test_each_fact_is_found_once():
    assert len(extract_facts("Round grains, rounded grains, and more grains.")) == 2
