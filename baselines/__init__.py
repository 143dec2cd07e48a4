"""The paper's comparisons, and what people really use, under the same folds and budget.

    python -m baselines list
    python -m baselines run resnet-18 swin-tiny --dataset data/micrographs --output_dir runs/rows
    python -m baselines table runs/rows

A row of a table is a few lines that name a builder of a well-kept library. In the order in which
data passes through them:

    environment.py         what torchvision needs beside PyTorch's CPU build
    rows.py                what a row is
    learners.py            what the loop trains: a loss and category scores
    small_vits.py          rows: vision transformers for small data sets
    views.py               views of micrographs that self-supervised rows compare
    probed.py              an encoder that learns without categories, and its linear probe
    masked.py              encoders that fill in hidden patches
    self_supervised.py     rows: encoders that compare views, and those of masked.py
"""
