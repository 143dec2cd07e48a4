"""The widget of napari: Plugins > MVaEMa > Ask about a layer.

What is special about it:
- it asks about what is seen: of a stack, the slice that is shown; of a Shapes layer, the rectangle
  that is chosen, or else the one drawn last;
- the length of a pixel is the layer's own, where `layer.units` is a length;
- the student works in a thread, so the viewer stays responsive. It stays in this process: no
  server, no network.
"""

from collections.abc import Generator

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, Container, LineEdit, PushButton, TextEdit
from napari.components import ViewerModel
from napari.layers import Image, Shapes
from napari.qt.threading import thread_worker

from configuration_mvaema import QUESTIONS
from mvaema.micrographs.calibration import NotAMicrograph, axis_nm
from mvaema.micrographs.info_bar import Box
from mvaema.viewers.asking import Reply, ask, load, pixel_size_nm

WHOLE = "the whole image"


class AskWidget(Container):
    """Layer, region, question and model in; answer, category and measurement out.

    Args:
        viewer: napari passes it.

    Attributes:
        worker: what is at work, or None.
    """

    def __init__(self, viewer: ViewerModel):
        self.viewer, self.worker = viewer, None
        self.layer = ComboBox(label="image", choices=self._images)
        self.shapes = ComboBox(label="region", choices=self._regions)
        self.group = ComboBox(label="ask", choices=[(q, t) for q, t in QUESTIONS.items()])
        self.question = LineEdit(label="or type", tooltip="Goes before the question chosen above.")
        self.model = LineEdit(
            label="model", tooltip="Folder or Hub id of a student; the shipped one if empty."
        )
        self.measured = CheckBox(value=True, text="measure sizes")
        self.button = PushButton(text="Ask")
        self.reply = TextEdit(label="", enabled=True)
        self.reply.read_only = True
        super().__init__(
            widgets=[
                *(self.layer, self.shapes, self.group, self.question, self.model),
                *(self.measured, self.button, self.reply),
            ]
        )
        self.button.changed.connect(self.ask)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self._refresh)

    def ask(self) -> None:
        """Ask in a thread; the reply, or what is wrong, is shown when it is there."""
        if self.worker is not None:
            return
        layer = self.layer.value
        if layer is None:
            self._show("Open an image first.")
            return
        try:
            about = {
                "pixels": shown_pixels(self.viewer, layer),
                "pixel_size_nm": layer_pixel_nm(layer),
                "region": None if self.shapes.value == WHOLE else drawn_box(self._drawn(), layer),
            }
        except (ValueError, NotAMicrograph) as error:
            self._show(str(error))
            return
        question = self.question.value.strip() or self.group.value
        self.worker = _asked(self.model.value.strip() or None, question, self.measured.value, about)
        self.worker.yielded.connect(self._show)
        self.worker.returned.connect(lambda reply: self._show("\n\n".join(reply.lines())))
        self.worker.errored.connect(lambda error: self._show(str(error)))
        self.worker.finished.connect(self._done)
        self.button.enabled = False
        self.worker.start()

    def _done(self) -> None:
        self.worker, self.button.enabled = None, True

    def _show(self, text: str) -> None:
        self.reply.value = text

    def _drawn(self) -> Shapes:
        return self.viewer.layers[self.shapes.value]

    def _images(self, _=None) -> list[tuple[str, Image]]:
        return [(layer.name, layer) for layer in self.viewer.layers if isinstance(layer, Image)]

    def _regions(self, _=None) -> list[str]:
        drawn = [layer.name for layer in self.viewer.layers if isinstance(layer, Shapes)]
        return [WHOLE, *drawn]

    def _refresh(self, _=None) -> None:
        self.layer.reset_choices()
        self.shapes.reset_choices()


@thread_worker(ignore_errors=True)  # the widget shows them
def _asked(
    model: str | None, question: str, measured: bool, about: dict
) -> Generator[str, None, Reply]:
    """The reply, in a thread; says on the way what is being done."""
    yield "Loading the student …"
    answerer = load(model)
    yield "Looking …"
    return ask(answerer, question=question, measured=measured, **about)


def shown_pixels(viewer: ViewerModel, layer: Image) -> np.ndarray:
    """What the viewer shows of a layer, (height, width) or (height, width, 3 or 4).

    Raises:
        ValueError: it is shown in 3D or with other axes than its last two.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    stacked = layer.ndim - 2
    if tuple(viewer.dims.displayed) != (viewer.dims.ndim - 2, viewer.dims.ndim - 1):
        raise ValueError("the viewer shows a volume or turned axes: show the last two, in 2D.")
    place = np.round(layer.world_to_data(viewer.dims.point)[:stacked]).astype(int)
    place = [int(np.clip(i, 0, n - 1)) for i, n in zip(place, data.shape, strict=False)]
    return np.asarray(data[tuple(place)])


def layer_pixel_nm(layer: Image) -> float | None:
    """The length of a pixel of a layer in nm, or None if its units are no lengths."""
    y, x = (float(scale) for scale in layer.scale[-2:])
    return pixel_size_nm((x, y), tuple(str(unit) for unit in layer.units[-2:][::-1]))


def drawn_box(shapes: Shapes, layer: Image) -> Box:
    """The box around the chosen shape, or the last one, in pixels of an image layer.

    Raises:
        ValueError: nothing is drawn.
    """
    if not len(shapes.data):
        raise ValueError(f"{shapes.name}: draw a rectangle first, or choose {WHOLE!r}.")
    chosen = max(shapes.selected_data, default=len(shapes.data) - 1)
    corners = np.array([shapes.data_to_world(corner) for corner in shapes.data[chosen]])[:, -2:]
    # Layers may be in different units of length.
    units = [axis_nm(1, str(unit)) for unit in (*shapes.units[-2:], *layer.units[-2:])]
    if None not in units:
        corners *= np.divide(units[:2], units[2:])
    stacked = [0.0] * (layer.ndim - 2)
    points = np.array([layer.world_to_data([*stacked, *corner])[-2:] for corner in corners])
    # A pixel's coordinates are those of its middle.
    upper, left = np.floor(points.min(axis=0) + 0.5).astype(int).tolist()
    lower, right = np.ceil(points.max(axis=0) + 0.5).astype(int).tolist()
    return left, upper, right, lower
