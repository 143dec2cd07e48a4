"""A synthetic microscope: micrographs of all ten categories from scenes with known facts.

    from mvaema.synthetic.scenes import render

    scene = render(seed=7, category="Nanowires")
    scene.image, scene.facts.size_mean_nm, scene.answers["size_distribution"]

`mvaema synthetic` writes a whole dataset: SEM with three detectors, bright-field TEM and dark-field
STEM. Everything follows from the seed; nothing is downloaded and nothing is a photograph.

In the order a scene passes through:
    canvas.py        the height field, in nanometres, and the shapes put on it
    specimen.py      what every specimen has: its stage, its facts, how it is measured
    grains.py        particles and powders
    aggregates.py    many small grains: aggregates, fine powders, granular sponges
    wires.py         nanowires, fibres, tips
    surfaces.py      films, porous sponges
    coatings.py      further films: upright sheets, folds, sections, trenches
    patterns.py      patterned surfaces
    devices.py       MEMS devices and electrodes
    biology.py       biological specimens
    projected.py     particles, wires and networks seen in transmission
    sections.py      thin sections and sheets seen in transmission
    optics.py        the physics of an SEM: height field to grey levels
    transmission.py  the physics of a TEM and a STEM: thickness to grey levels
    text.py          text printed into an image
    infobar.py       the info bar, with a scale bar that is true
    annotations.py   what journals print over micrographs
    vocabulary.py    words for every kind of specimen, from vocabulary.toml
    wording.py       lengths and counts in words
    answers.py       facts to answers to the ten question groups
    scenes.py        a seed to a finished micrograph with facts and answers
    dataset.py       scenes to rows of the schema, by several processes
    writing.py       rows to a dataset folder with its card
"""
