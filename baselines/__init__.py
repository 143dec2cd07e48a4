"""The paper's comparisons, and what people really use, under the same folds and budget.

    python -m baselines list
    python -m baselines run resnet-18 swin-tiny --dataset data/micrographs --output_dir runs/rows
    python -m baselines table runs/rows

A row of a table is a few lines that name a builder of a well-kept library. In the order in which
data passes through them:

    environment.py         what torchvision needs beside PyTorch's CPU build
    rows.py                what a row is
    learners.py            what the loop trains: a loss and category scores
    patch_graphs.py        a micrograph as a graph of patches, and what encodes it
    graphs.py              rows: graph neural networks
    graph_contrastive.py   rows: graph contrastive learning
"""
