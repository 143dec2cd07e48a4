"""Sample answers of a student in training: what the falling losses mean in words.

After each epoch the same questions about the same few validation micrographs, beside the teacher's
answers. Asking leaves no trace in the run: nothing is drawn from the global random state.
"""

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

import torch
from datasets import Dataset

from modeling_mvaema import MVaEMaModel
from mvaema.micrographs.dataset import decode_image
from mvaema.training.streaming import ParquetRows

QUESTIONS_PER_MICROGRAPH = 3
STREAMED = 64  # rows of a stream to choose from


@torch.no_grad()
def sample_answers(model: MVaEMaModel, rows: Dataset | ParquetRows, count: int) -> list[dict]:
    """Answers to a few questions about `count` micrographs, from as many categories as possible.

    The choice depends on `rows` alone. The student sees the image and the scale, not the caption,
    and decodes greedily.

    Args:
        model: unwrapped. Its mode, training or evaluation, is restored.
        rows: of the micrograph schema, images encoded.

    Returns:
        one dictionary per question: image_id, question_id, question, answer, teacher.
    """
    if isinstance(rows, ParquetRows):
        rows = rows.sample(STREAMED)
    training = model.training
    model.eval()
    try:
        return [
            sample
            for number, index in enumerate(_spread(rows["category"], count))
            for sample in _ask(model, rows[index], number)
        ]
    finally:
        model.train(training)


def format_samples(samples: Sequence[dict], width: int = 240) -> str:
    """Markdown that also reads well on a console. Texts are cut to `width` characters."""
    lines, image_id = [], None
    for sample in samples:
        if sample["image_id"] != image_id:
            image_id = sample["image_id"]
            lines.append(f"\n**Micrograph {image_id}**\n")
        lines.append(f"- {_short(sample['question'], width)}")
        for name, text in (("student", sample["answer"]), ("teacher", sample["teacher"])):
            lines.append(f"    - {name}: {_short(text, width) or '(nothing)'}")
    return "\n".join(lines).strip() + "\n"


def _spread(categories: Sequence[str | None], count: int) -> list[int]:
    """`count` rows, taken from each category in turn, in the order in which they occur."""
    of_category = {}
    for index, category in enumerate(categories):
        of_category.setdefault(category, []).append(index)
    turns = zip_longest(*of_category.values())
    return [index for turn in turns for index in turn if index is not None][:count]


def _ask(model: MVaEMaModel, row: dict, number: int) -> list[dict]:
    answered = [qa for qa in row["qa"] if qa["outcome"] == "ok"]
    # Other questions for each micrograph, so that a few micrographs cover many of them.
    start = number * QUESTIONS_PER_MICROGRAPH
    asked = [
        answered[(start + i) % len(answered)]
        for i in range(min(QUESTIONS_PER_MICROGRAPH, len(answered)))
    ]
    answers = model.answer(
        decode_image(row),
        [qa["question"] for qa in asked],
        pixel_size_nm=row["pixel_size_nm"],
        scale_bars=row["scale_bar"],
        decoding="greedy",
    )
    return [
        {
            "image_id": row["image_id"],
            "question_id": qa["question_id"],
            "question": qa["question"],
            "answer": answer,
            "teacher": qa["answer"],
        }
        for qa, answer in zip(asked, answers, strict=True)
    ]


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" …")
