"""Measuring: lengths and sizes from the pixels, so that no model has to guess them.

In the order a micrograph passes through:
    text.py             the print in a micrograph, and the lengths that it states
    bars.py             scale bars, found and measured in the pixels
    scale.py            a bar with its text: how long one pixel is, or why that is unknown
"""
