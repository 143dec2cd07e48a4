"""python examples/ask_hyperspy.py image.dm4 -q "How large are the particles?"

A HyperSpy signal in; answer, category and measurement out. The axes of the signal say how long a
pixel is. Nothing leaves this machine, and the signal is not changed.

    pip install -e ".[measuring,train]" hyperspy

In a notebook:

    from ask_hyperspy import ask_signal
    reply = ask_signal(signal, "How large are the particles?")
    print(reply.answer)
    print(reply.measurement.sentence())     # reply.measurement.objects has a row for each of them
"""

import argparse
from typing import TYPE_CHECKING

from mvaema.viewers.asking import Reply, ask, load, pixel_size_nm

if TYPE_CHECKING:
    from hyperspy.signal import BaseSignal


def ask_signal(signal: "BaseSignal", question: str, model: str | None = None) -> Reply:
    """Ask a student about an image.

    Args:
        signal: of two signal axes, grey; of a stack, the image at its current indices.
        question: any question about it.
        model: folder or Hub id of a student; the one of the repository if None.

    Raises:
        ValueError: the signal is no image.
        NotAMicrograph: an axis is one of energy, time or reciprocal space.
    """
    axes = signal.axes_manager.signal_axes
    if len(axes) != 2:
        raise ValueError(
            f"the signal has {len(axes)} signal axes and an image has 2: signal.as_signal2D((0, 1))"
        )
    # `units` may be undefined, a Traits object of HyperSpy that is no text.
    units = [axis.units if isinstance(axis.units, str) else "" for axis in axes]
    size = pixel_size_nm(tuple(axis.scale for axis in axes), tuple(units))
    pixels = signal.get_current_signal().data
    return ask(load(model), pixels, question, pixel_size_nm=size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="any file with an image that HyperSpy reads")
    parser.add_argument("-q", "--question", default="How large are the structures?")
    parser.add_argument("--model", help="folder or Hub id of a student")
    args = parser.parse_args()
    import hyperspy.api as hs

    print("\n".join(ask_signal(hs.load(args.image), args.question, args.model).lines()))
