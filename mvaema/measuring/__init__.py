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
    field.py            what is measured of an image: no info bar, no print, finer pixels
    foreground.py       objects apart from their ground
    outlines.py         how steep outlines are, and whether as steep ones were left out
    particles.py        objects taken apart where they touch, and sized
    polarity.py         whether objects are bright or dark
    fibres.py           widths along skeletons, and directions
    pores.py            openings and the share of the area they have
    standing.py         objects that stand out by themselves, where one threshold fails
    films.py            thickness of layers in section
    patterns.py         pitch of what repeats
    quality.py          whether a measurement can be trusted, and why not
    results.py          what a measurement says: numbers with their unit, or reasons
    areas.py            particles and pores as drafts: all of them, or those that stand out
    kinds.py            the five kinds, and how one is chosen
    measure.py          an image to its measurement
    methods.py          a measurement in words
    overlay.py          a measurement in pictures
    folder.py           a file or a folder to tables and pictures, resumed after a stop
"""
