"""Training: from a recipe and a micrograph dataset to a student.

In the order that data passes through:
    recipe.py        what a user may choose: settings from YAML and flags
    run.py           one run, from a recipe to a finished folder
    run_folder.py    whose a folder is, and what a run records in it
    provenance.py    the fingerprint of the data, and the versions of the code
    split.py         the rows: which are trained on, which validate, which are tested on
    mixing.py        rows of several datasets, and how often an epoch shows each
    streaming.py     rows of Parquet shards, without a copy
    examples.py      a row to prompts, answers, statements and a view
    views.py         flips, turns and close-ups under which the texts stay true
    features.py      what a frozen vision model makes of each view, kept on disk
    batches.py       examples to batches, for each epoch and process
    loop.py          steps and epochs
    batch_losses.py  the losses of a batch over all processes, and their means
    validation.py    the losses on the validation micrographs
    state.py         where a run stands
    checkpoints.py   written whole or not at all; a killed run resumes from them
    signals.py       SIGTERM and Ctrl-C
    best_student.py  the student with the lowest validation loss
    reporting.py     the console, the .jsonl files, the trackers
    samples.py       answers of the student after each epoch
    curves.py        the loss curves
"""
