"""The library behind the commands. One folder per stage, in the order that data passes through:

    micrographs/   instrument files to a micrograph dataset; folds that do not leak
    measuring/     scale bars read and structures measured in the pixels
    synthetic/     the synthetic microscope: micrographs with known facts and truthful answers
    teacher/       answers from a large vision model, journalled and exported as a dataset
    students/      where a student starts, and how it is adapted, stored and shared
    training/      a dataset and a recipe to a trained student
    serving/       a student behind OpenAI's API
    evaluation/    a student's answers, their scores and the report
    viewers/       a student where micrographs are looked at: napari
    page/          a student in the browser
    commands/      the command line: one module per sub-command of `mvaema`
    files.py       files that a kill leaves whole
    memory.py      freed memory is kept for the next tensor
    hub.py         repositories on the Hub that are private unless said otherwise

A stage imports only from those above it (tests/test_layout.py).
"""

import os

# ONNX Runtime, which reads scale bars and runs exported students, has a client of
# events.data.microsoft.com since 1.32, and reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
