"""Measuring: lengths and sizes from the pixels, so that no model has to guess them.

In the order a micrograph passes through:
    lengths.py          lengths as they are printed, and as readers misread them
    text.py             the print in a micrograph, and the lengths that it states
    edges.py            where a bar begins and ends, to a fraction of a pixel
    runs.py             blocks of ink: what may be a bar at one threshold
    marks.py            scales of ticks, dots or dashes
    bars.py             scale bars, found and measured in the pixels
    pairs.py            which bar belongs to which length
    scale.py            how long one pixel is, or why that is unknown
"""
