"""Students where micrographs are looked at: pixels that another program has open.

asking.py             an image, a region of it and a question to answer, category and measurement
napari_widget.py      the widget of napari, which asks about a layer or a drawn region
napari.yaml           what napari reads to find it
"""
