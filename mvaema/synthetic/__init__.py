"""A synthetic microscope: SEM micrographs of all ten categories from scenes with known facts.

    from mvaema.synthetic import render

    scene = render(seed=7, category="Nanowires")
    scene.image, scene.facts.size_mean_nm, scene.answers["size_distribution"]

and as a command, for a whole dataset: `python -m mvaema.synthetic --count 1000 --output FOLDER`.
What is special about it:
- a surface is built in nanometres (`canvas`; `grains`, `wires`, `surfaces`, `devices`,
  `biology`), imaged by the physics of an SEM (`optics`), labelled by an info bar whose scale bar is
  true (`infobar`), and described from what can be seen (`answers`, `vocabulary`);
- everything follows from the seed; nothing is downloaded and nothing is a photograph.
"""

from .dataset import LICENCE, SOURCE, Recipe, rows
from .scenes import CATEGORIES, Scene, render
from .specimen import Facts

__all__ = ["CATEGORIES", "LICENCE", "SOURCE", "Facts", "Recipe", "Scene", "render", "rows"]
