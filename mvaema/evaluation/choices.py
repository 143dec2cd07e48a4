"""What a student has to tell apart: answers to one question, and micrographs. Drawn once, by seed.

What is special about it:
- the answers to a question are dealt into blocks of eight, each of another group and with another
  text. Each micrograph of a block chooses among the eight answers, and each answer among the eight
  micrographs;
- that makes chance exact: whoever does not look prefers the same answer for all eight micrographs,
  and is right once. With answers drawn anew for each micrograph, typical answers could be true more
  often than they are offered.

Answers that are left over are not chosen among. They are of the largest groups.
"""

import random
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from mvaema.evaluation.questions import Questions, Record, cluster_of, key_of

CHOICES = 8
SEED = 0
# The sets of choices: from anywhere, or the harder one of a single category.
ANY, SAME = SETS = ("any category", "same category")


@dataclass(frozen=True)
class Choices:
    """What is drawn for the records of an evaluation.

    Attributes:
        blocks: set to (image id, question id) to the image ids of its block, its own included.
        partners: image id to another micrograph's, of another group. Empty with a single group.
    """

    blocks: dict[str, dict[tuple[str, str], tuple[str, ...]]]
    partners: dict[str, str]

    @classmethod
    def draw(cls, questions: Questions) -> "Choices":
        """The choices for some questions; the same in every process.

        Blocks have `CHOICES` answers, or as many as there are groups if those are fewer. Blocks of
        the same category always have `CHOICES`; there are none where its groups are fewer.
        """
        of_question: dict[Hashable, list[Record]] = {}
        of_category: dict[Hashable, list[Record]] = {}
        for record in questions.records:
            question = record["question_id"], record["question"]
            of_question.setdefault(question, []).append(record)
            if record.get("category"):
                of_category.setdefault((*question, record["category"]), []).append(record)
        any_blocks, same_blocks = {}, {}
        for question, records in of_question.items():
            size = min(CHOICES, len({cluster_of(r) for r in records}))
            any_blocks |= _blocks(records, size, f"{SEED} {ANY} {question}")
        for part, records in of_category.items():
            same_blocks |= _blocks(records, CHOICES, f"{SEED} {SAME} {part}")
        return cls({ANY: any_blocks, SAME: same_blocks}, _partners(questions.records))

    def offered(self, record: Record) -> list[str]:
        """The image ids of all whose answers a record is scored with, its own first."""
        blocks = (of_set.get(key_of(record), ()) for of_set in self.blocks.values())
        ids = (image_id for block in blocks for image_id in block)
        return list(dict.fromkeys([record["image_id"], *ids]))


def _blocks(records: Iterable[Record], size: int, seed: str) -> dict:
    """Key to block: disjoint blocks of `size` records of distinct groups and texts.

    Taking from the groups with most records left gives as many blocks as there can be.
    """
    if size < 2:
        return {}
    rng = random.Random(seed)
    left: dict[str, list[Record]] = {}
    for record in records:
        left.setdefault(cluster_of(record), []).append(record)
    for of_group in left.values():
        rng.shuffle(of_group)
    found = {}
    while block := _next_block(left, size, rng):
        ids = tuple(record["image_id"] for record in block)
        for record in block:
            left[cluster_of(record)].remove(record)
            found[key_of(record)] = ids
    return found


def _next_block(
    left: dict[str, list[Record]], size: int, rng: random.Random
) -> list[Record] | None:
    groups = [group for group, records in left.items() if records]
    rng.shuffle(groups)
    block, texts = [], set()
    for group in sorted(groups, key=lambda g: -len(left[g])):
        for record in left[group]:
            text = " ".join(record["reference"].lower().split())
            if text not in texts:
                block.append(record)
                texts.add(text)
                break
        if len(block) == size:
            return block
    return None


def _partners(records: Iterable[Record]) -> dict[str, str]:
    cluster = {record["image_id"]: cluster_of(record) for record in records}
    rng = random.Random(f"{SEED} partners")
    partners = {}
    for image_id, own in cluster.items():
        others = [other for other, of_other in cluster.items() if of_other != own]
        if others:
            partners[image_id] = rng.choice(others)
    return partners
