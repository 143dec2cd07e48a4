"""The HyperSpy example with real signals: which pixels are asked about, and at which scale."""

import importlib.util

import numpy as np
import pytest
from support import ROOT

from configuration_mvaema import QUESTIONS

hs = pytest.importorskip("hyperspy.api", reason="needs HyperSpy: pip install hyperspy")


class Listener:
    """An answerer that keeps what it is given."""

    questions, methods = QUESTIONS, ("ITC",)

    def answer(self, images, questions, captions, pixel_size_nm, scale_bars):
        self.images, self.questions_asked, self.pixel_size_nm = images, questions, pixel_size_nm
        return [["Wires."]]

    def classify(self, images, method):
        return [{"Particles": 1.0}]


@pytest.fixture
def example(monkeypatch):
    """The example as a module whose student listens."""
    spec = importlib.util.spec_from_file_location("ask", ROOT / "examples" / "ask_hyperspy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listener = Listener()
    monkeypatch.setattr(module, "load", lambda model: listener)
    return module, listener


def signal(shape: tuple[int, ...], scale: float, units: str | None):
    rng = np.random.default_rng(0)
    made = hs.signals.Signal2D(rng.integers(0, 256, shape).astype(np.uint8))
    for axis in made.axes_manager.signal_axes:
        axis.scale = scale
        if units is not None:
            axis.units = units
    return made


@pytest.mark.parametrize(
    ("scale", "units", "expected"),
    [(2.5, "nm", 2.5), (0.02, "µm", 20.0), (1.0, None, None), (0.5, "px", None)],
)
def test_the_axes_say_how_long_a_pixel_is(example, scale, units, expected):
    module, listener = example
    reply = module.ask_signal(signal((60, 80), scale, units), "What?")
    assert listener.pixel_size_nm == [expected if expected is None else pytest.approx(expected)]
    assert reply.answer == "Wires." and reply.measurement is not None


def test_of_a_stack_the_current_image_is_asked_about(example):
    module, listener = example
    stack = signal((4, 60, 80), 2.0, "nm")
    stack.axes_manager.indices = (2,)
    before = stack.data.copy()
    module.ask_signal(stack, "What?")
    assert np.array_equal(np.asarray(listener.images[0]), stack.data[2])
    assert np.array_equal(stack.data, before)


def test_a_spectrum_is_no_image(example):
    module, _ = example
    with pytest.raises(ValueError, match="has 1 signal axes and an image has 2"):
        module.ask_signal(hs.signals.Signal1D(np.zeros((5, 100))), "What?")
