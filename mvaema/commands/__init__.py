"""The command line: one module per sub-command of `mvaema`, each with `main(argv, prog)`.

A module holds the parser and what is printed. The work is done by the stage's own folder. In the
order a lab uses them:
    build.py       micrograph files to a dataset
    folds.py       folds that do not leak, and a hold-out split
    measure.py     sizes of structures in micrographs
    synthetic.py   simulated micrographs to a dataset
    teach.py       a large vision model's answers; also generate_teacher_data.py
    eyes.py        EfficientNet-Lite0, to start a student from
    train.py       a student, or one per fold; also train.py at the root
    eval.py        scores and the report; also eval.py at the root
    ask.py         questions to a student
    serve.py       questions to a student over the network
    export.py      a student to ONNX graphs, for a computer without torch
    push.py        a student to the Hub
    demo.py        all stages on simulated micrographs
    arguments.py   arguments that several of them take
"""
