"""A synthetic microscope: SEM micrographs of all ten categories from scenes with known facts.

    from mvaema.synthetic.scenes import render

    scene = render(seed=7, category="Nanowires")
    scene.image, scene.facts.size_mean_nm, scene.answers["size_distribution"]

`mvaema synthetic` writes a whole dataset. Everything follows from the seed; nothing is downloaded
and nothing is a photograph.

In the order a scene passes through:
    canvas.py      the height field, in nanometres, and the shapes put on it
    specimen.py    what every specimen has: its stage, its facts, how it is measured
    grains.py      particles and powders
    wires.py       nanowires, fibres, tips
    surfaces.py    films, patterned surfaces, porous sponges
    devices.py     MEMS devices and electrodes
    biology.py     biological specimens
    optics.py      the physics of an SEM: height field to grey levels
    infobar.py     the info bar, with a scale bar that is true
    vocabulary.py  words for every kind of specimen, from vocabulary.toml
    answers.py     facts to answers to the ten question groups
    scenes.py      a seed to a finished micrograph with facts and answers
    dataset.py     scenes to rows of the schema, by several processes
    writing.py     rows to a dataset folder with its card
"""
