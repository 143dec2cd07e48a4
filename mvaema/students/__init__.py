"""Students: where they start, how they are adapted, stored and shared.

In the order of a student's life:
    new.py          a new student: its shapes, tokenizer, questions and categories
    lite0.py        EfficientNet-Lite0, a vision model that a Python package brings
    vision.py       a pre-trained vision model: its kind, its images, its weights
    warm_start.py   a vision model and the weights of a BERT in a new student
    freezing.py     which part of the vision model is trained
    shipped.py      the student at the repository's root
    loading.py      a student from a folder or the Hub, its adapters merged
    lora.py         LoRA adapters: added, saved, merged
    repository.py   the files of a model repository, replaced whole or not at all
    graph_files.py  the files of ONNX graphs: weights in half precision, and once for all
    exporting.py    a student as ONNX graphs, with what runs them
    exported.py     a student that was exported, from its folder
    places.py       what is a Hub repository, and what names a folder of this machine
    card.py         the model card
    hub.py          the upload
"""
