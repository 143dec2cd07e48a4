"""The library behind the commands. One folder per stage, in the order that data passes through:

    micrographs/   instrument files to a micrograph dataset; folds that do not leak
    measuring/     scale bars read and structures measured in the pixels
    synthetic/     the synthetic microscope: micrographs with known facts and truthful answers
    teacher/       answers from a large vision model, journalled and exported as a dataset
    students/      where a student starts, and how it is adapted, stored and shared
    training/      a dataset and a recipe to a trained student
    evaluation/    a student's answers, their scores and the report
    commands/      the command line: one module per sub-command of `mvaema`
    files.py       files that a kill leaves whole
    memory.py      freed memory is kept for the next tensor
    hub.py         repositories on the Hub that are private unless said otherwise

A stage imports only from those above it (tests/test_layout.py).
"""
