"""What is drawn to choose among: blocks in which guessing is right exactly once."""

import os
import random
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from support import ROOT

from mvaema.evaluation.choices import ANY, SAME, Choices

SIZES = (9, 7, 5, 3, 3, 2, 2, 2, 1, 1, 1, 1)  # micrographs of each group


def questions_of(sizes=SIZES, text="Answer {}.") -> SimpleNamespace:
    records = [
        {
            "image_id": f"image{group}.{i}",
            "group": f"group{group}",
            "category": "Tips" if group else "Fibres",
            "question_id": question,
            "question": f"What about {question}?",
            "reference": text.format(f"{group}.{i}"),
        }
        for group, size in enumerate(sizes)
        for i in range(size)
        for question in ("basics", "surface")
    ]
    return SimpleNamespace(records=records)


def blocks_of(choices: Choices, of_set: str, question: str) -> set[tuple[str, ...]]:
    return {block for (_, q), block in choices.blocks[of_set].items() if q == question}


@pytest.mark.parametrize("of_set", [ANY, SAME])
def test_blocks_are_of_eight_groups_and_share_no_micrograph(of_set):
    choices = Choices.draw(questions_of())
    for question in ("basics", "surface"):
        blocks = blocks_of(choices, of_set, question)
        members = Counter(image_id for block in blocks for image_id in block)
        assert blocks and set(members.values()) == {1}
        for block in blocks:
            groups = {image_id.split(".")[0] for image_id in block}
            assert len(block) == len(groups) == 8
            assert of_set == ANY or "image0" not in groups  # the only fibres
            assert all(choices.blocks[of_set][image_id, question] == block for image_id in block)
    assert blocks_of(choices, of_set, "basics") != blocks_of(choices, of_set, "surface")


def test_there_are_as_many_blocks_as_there_can_be():
    """b blocks need 8 b micrographs of which a group gives b at most."""
    rng = random.Random(0)
    for _ in range(50):
        sizes = [rng.randint(1, 9) for _ in range(rng.randint(8, 20))]
        most = max(b for b in range(20) if sum(min(size, b) for size in sizes) >= 8 * b)
        found = blocks_of(Choices.draw(questions_of(sizes)), ANY, "basics")
        assert len(found) == most, sizes


def test_guessing_is_right_exactly_once_in_a_block():
    choices, rng = Choices.draw(questions_of()), random.Random(1)
    liking = {image_id: rng.random() for (image_id, _) in choices.blocks[ANY]}
    hits = [max(b, key=liking.get) == i for (i, _), b in choices.blocks[ANY].items()]
    assert sum(hits) / len(hits) == 1 / 8


def test_equal_texts_are_never_to_be_told_apart():
    questions = questions_of()
    for record in questions.records[:30]:
        record["reference"] = "The image  is static."
    blocks = Choices.draw(questions).blocks[ANY]
    texts = {(r["image_id"], r["question_id"]): r["reference"] for r in questions.records}
    for (_, question), block in blocks.items():
        assert len({texts[image_id, question] for image_id in block}) == 8


def test_few_groups_make_small_blocks_and_one_makes_none():
    few = Choices.draw(questions_of((4, 3, 2)))
    assert {len(block) for block in few.blocks[ANY].values()} == {3}
    assert not few.blocks[SAME]
    one = Choices.draw(questions_of((4,)))
    assert not one.blocks[ANY] and not one.partners
    record = questions_of((4,)).records[0]
    assert one.offered(record) == [record["image_id"]]


def test_a_partner_is_of_another_group():
    partners = Choices.draw(questions_of()).partners
    assert len(partners) == sum(SIZES)
    assert all(a.split(".")[0] != b.split(".")[0] for a, b in partners.items())


@pytest.mark.slow
def test_every_process_draws_the_same():
    code = "from evaluation.test_choices import *; print(Choices.draw(questions_of()))"
    path = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    printed = [
        subprocess.check_output(
            [sys.executable, "-c", code], env=os.environ | path | {"PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1] and len(printed[0]) > 1000
