"""The paper's comparisons, and what people really use, under the same folds and budget.

    python -m baselines list
    python -m baselines run resnet-18 swin-tiny --dataset data/micrographs --output_dir runs/rows
    python -m baselines table runs/rows

A row of a table is a few lines that name a builder of a well-kept library. In the order in which
data passes through them:

    environment.py         what torchvision needs beside PyTorch's CPU build
    settings.py            what all rows of a folder share, and what one run is given
    data.py                the micrographs of a fold, and batches of them
    training.py            the one loop, with its budget
    outcome.py             what a run comes to
    rows.py                what a row is

rows that classify:

    learners.py            what the loop trains: a loss and category scores
    scoring.py             a classifier's scores and its blind twin's
    classifying.py         a run of a row that classifies
    references.py          rows that do not look
    convnets.py            the paper's convolutional networks
    small_vits.py          vision transformers for small data sets
    vision_transformers.py the paper's other vision transformers
    views.py               views of micrographs that self-supervised rows compare
    probed.py              an encoder that learns without categories, and its linear probe
    masked.py              encoders that fill in hidden patches
    self_supervised.py     encoders that compare views, and those of masked.py
    patch_graphs.py        a micrograph as a graph of patches, and what encodes it
    graphs.py              graph neural networks
    graph_contrastive.py   graph contrastive learning
    encoders.py            pre-trained vision models as learners
    beyond.py              what people use today, probes and controls

rows that answer:

    answers.py             prompts and answers in batches, and the loss of an answer's tokens
    chat_models.py         chat models to tune, and what of them is trained
    random_chats.py        tiny ones of random weights, where there is no hub
    answer_figures.py      what they are asked, and the figures that a table shows
    tuning.py              a run of a row that answers
    answering.py           InstructBLIP, LLaVA, MiniGPT-4, and any chat model by LoRA
    students.py            students of this project, and their ablations

and what is done with them:

    registry.py            all rows, and what is meant by a name
    runs.py                runs in one folder, resumed row by row
    table.py               tables and a picture of what runs came to
"""
