"""The widget of napari: what it asks about, that it does so in a thread, and what it shows.

No window is opened, so no graphics are needed; only Qt, which draws to memory.
"""

import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
napari = pytest.importorskip("napari", reason="needs napari: pip install 'mvaema[napari]'")
pytest.importorskip("qtpy", reason="needs a Qt binding: pip install 'napari[all]'")

from napari.components import ViewerModel  # noqa: E402
from napari.qt import get_qapp  # noqa: E402
from npe2 import PluginManifest  # noqa: E402
from support import ROOT  # noqa: E402

from configuration_mvaema import QUESTIONS  # noqa: E402
from mvaema.viewers import napari_widget  # noqa: E402
from mvaema.viewers.napari_widget import (  # noqa: E402
    AskWidget,
    drawn_box,
    layer_pixel_nm,
    shown_pixels,
)

RECTANGLE = np.array([[10, 20], [10, 60], [40, 60], [40, 20]], dtype=float)


@pytest.fixture(scope="module")
def application():
    return get_qapp()


@pytest.fixture
def viewer(application):
    return ViewerModel()


class Listener:
    """An answerer that keeps what it is given, and waits until it may speak."""

    questions, methods = QUESTIONS, ("ITC",)

    def __init__(self):
        self.may_speak, self.images, self.told, self.thread = threading.Event(), [], [], None

    def answer(self, images, questions, captions, pixel_size_nm, scale_bars):
        assert self.may_speak.wait(20)
        self.thread = threading.current_thread()
        self.images, self.told = images, [questions, pixel_size_nm]
        return [["Wires."]]

    def classify(self, images, method):
        return [{"Nanowires": 0.75, "Tips": 0.25}]


@pytest.fixture
def listener(monkeypatch):
    listener = Listener()
    monkeypatch.setattr(napari_widget, "load", lambda model: listener)
    return listener


def wait(application, widget, seconds: float = 30) -> int:
    """Run the event loop until the reply is there; how often it went round."""
    rounds, until = 0, time.monotonic() + seconds
    while widget.worker is not None and time.monotonic() < until:
        application.processEvents()
        time.sleep(0.01)
        rounds += 1
    assert widget.worker is None, "no reply"
    return rounds


def test_it_asks_about_the_drawn_region_in_a_thread(application, viewer, listener):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100), dtype=np.uint8)
    viewer.add_image(pixels, scale=(2, 2), units=("nm", "nm"), name="wafer")
    viewer.add_shapes([RECTANGLE * 0, RECTANGLE], scale=(2, 2), units=("nm", "nm"), name="drawn")
    widget = AskWidget(viewer)
    widget.shapes.value, widget.question.value, widget.measured.value = "drawn", "What?", False
    widget.ask()
    for _ in range(20):  # the viewer goes on while the student is at work
        application.processEvents()
        time.sleep(0.01)
    assert widget.worker is not None and not widget.button.enabled
    assert widget.reply.value in ("Loading the student …", "Looking …")
    listener.may_speak.set()
    wait(application, widget)
    assert listener.thread is not threading.main_thread()
    assert np.array_equal(np.asarray(listener.images[0]), pixels[10:41, 20:61])
    assert listener.told == [["What?"], [2.0]]
    shown = widget.reply.value
    assert "Wires." in shown and "Nanowires 75 %" in shown and "2 nm per pixel" in shown
    assert widget.button.enabled


def test_it_says_what_is_wrong(application, viewer, listener):
    widget = AskWidget(viewer)
    widget.ask()
    assert widget.reply.value == "Open an image first."
    viewer.add_image(np.zeros((64, 64), np.uint8), name="wafer")
    viewer.add_shapes(name="drawn")
    widget.shapes.value = "drawn"
    widget.ask()
    assert "draw a rectangle first" in widget.reply.value
    viewer.layers["drawn"].add_rectangles([[0, 0], [5, 5]])
    widget.measured.value = False
    widget.ask()
    wait(application, widget)
    assert "draw one of at least 16 × 16" in widget.reply.value and widget.button.enabled


def test_layers_come_and_go(viewer):
    widget = AskWidget(viewer)
    assert widget.layer.choices == () and widget.shapes.choices == ("the whole image",)
    layer = viewer.add_image(np.zeros((64, 64), np.uint8), name="wafer")
    viewer.add_shapes(name="drawn")
    assert widget.layer.choices == (layer,)
    assert widget.shapes.choices == ("the whole image", "drawn")
    viewer.layers.clear()
    assert widget.layer.choices == () and widget.shapes.choices == ("the whole image",)


def test_of_a_stack_the_shown_slice_is_asked_about(viewer):
    stack = np.random.default_rng(0).integers(0, 256, (5, 40, 50), dtype=np.uint8)
    layer = viewer.add_image(stack, scale=(10, 2, 2))
    viewer.dims.set_current_step(0, 3)
    assert np.array_equal(shown_pixels(viewer, layer), stack[3])
    colour = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    other = ViewerModel()
    assert np.array_equal(shown_pixels(other, other.add_image(colour, rgb=True)), colour)
    viewer.dims.ndisplay = 3
    with pytest.raises(ValueError, match="shows a volume"):
        shown_pixels(viewer, layer)


@pytest.mark.parametrize(
    ("scale", "units", "expected"),
    [
        ((2, 2), ("nm", "nm"), 2.0),
        ((0.5, 0.5), ("um", "um"), 500.0),
        ((0.5, 0.5), ("angstrom", "angstrom"), 0.05),
        ((2, 2), None, None),
        ((2, 3), ("nm", "nm"), None),
    ],
)
def test_the_length_of_a_pixel_is_that_of_the_layer(viewer, scale, units, expected):
    layer = viewer.add_image(np.zeros((64, 64)), scale=scale, units=units)
    found = layer_pixel_nm(layer)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_a_box_is_in_pixels_of_the_image(viewer):
    """Whatever scale, place and unit of length both layers have."""
    image = viewer.add_image(np.zeros((3, 80, 100)), scale=(1, 2, 2), translate=(0, 6, 4))
    image.units = ("nm", "nm", "nm")
    shapes = viewer.add_shapes([RECTANGLE * 2 + [6, 4]], name="in nm", units=("nm", "nm"))
    assert drawn_box(shapes, image) == (20, 10, 61, 41)
    in_um = viewer.add_shapes([(RECTANGLE * 2 + [6, 4]) / 1000], units=("um", "um"))
    assert drawn_box(in_um, image) == (20, 10, 61, 41)
    two = viewer.add_shapes([RECTANGLE * 2 + [6, 4], RECTANGLE * 0], units=("nm", "nm"))
    two.selected_data = {0}
    assert drawn_box(two, image) == (20, 10, 61, 41)


def test_napari_finds_the_widget():
    manifest = PluginManifest.from_file(ROOT / "mvaema" / "viewers" / "napari.yaml")
    (command,) = manifest.contributions.commands
    assert command.python_name == f"{AskWidget.__module__}:{AskWidget.__name__}"
    assert [w.command for w in manifest.contributions.widgets] == [command.id]


@pytest.mark.slow
def test_the_shipped_student_answers_and_measures(application, viewer):
    with Image.open(ROOT / "docs" / "example.png") as picture:
        viewer.add_image(np.asarray(picture.convert("L")), scale=(5, 5), units=("nm", "nm"))
    widget = AskWidget(viewer)
    widget.group.value = QUESTIONS["size_distribution"]
    widget.ask()
    rounds = wait(application, widget, 300)
    assert rounds > 20  # the loop went on all the while
    shown = widget.reply.value
    assert "Category: " in shown and "easured" in shown and "per pixel" in shown
