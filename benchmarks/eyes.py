"""python benchmarks/eyes.py --dataset data/micrographs --vision eyes/lite0 --layers -1 11,-1 5,8,11

Which eyes, and which of their layers, tell most about what a teacher says? A minute's answer before
a student is trained. Each `--layers` is a choice for `mvaema train --vision_layers`.

A ridge regression predicts from a micrograph's mean features which words its answers contain: each
word that between 4 % and 70 % of the training micrographs have. Printed is the reduction of the
log loss on the other split, in nats per micrograph, from that of the words' frequencies, with a
95 % interval over groups. Beside it: what knowing the category brings. The penalty is chosen on
held-out groups of the training split.
"""

import argparse
import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from mvaema.evaluation.intervals import mean_intervals
from mvaema.evaluation.table import Table, markdown
from mvaema.files import write_json
from mvaema.memory import keep_freed_memory
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.students.loading import weights_fingerprint
from vision_mvaema import chosen_features

WORD = re.compile(r"[a-z]{3,}")
RARE, COMMON = 0.04, 0.7  # shares of the training micrographs
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # times rows and features
SMOOTHING = 5  # micrographs of the usual kind that are added to each category's


class Split:
    """The texts of a split and, for each choice of layers, its features.

    Args:
        dataset: of the micrograph schema, with answers.
    """

    def __init__(self, dataset, words: list[str] | None = None):
        self.dataset = dataset
        rows = dataset.select_columns(["image_id", "qa", "category", "group"]).to_list()
        said = [{w for qa in row["qa"] for w in WORD.findall(qa["answer"].lower())} for row in rows]
        if words is None:
            counts = Counter(word for row in said for word in row)
            words = sorted(w for w, n in counts.items() if RARE < n / len(rows) < COMMON)
        self.words = words
        self.contains = np.array([[w in row for w in words] for row in said], dtype=float)
        self.categories = np.array([row["category"] for row in rows])
        self.groups = np.array([row["group"] or row["image_id"] for row in rows])

    @torch.inference_mode()
    def features(self, vision: str, choices: list[list[int]], folder: Path) -> list[np.ndarray]:
        """(micrographs, width) for each choice of layers; kept in `folder` for the next call."""
        processor = AutoImageProcessor.from_pretrained(vision)
        model = AutoModel.from_pretrained(vision, dtype=torch.float32).eval()
        made_by = weights_fingerprint(model), processor.to_dict()
        key = f"{made_by} {choices} {self.dataset['image_id']}"
        file = folder / f"eyes-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        if not file.is_file():
            found = [[] for _ in choices]
            for row in tqdm(self.dataset, unit="micrographs", desc=vision):
                image = decode_image(row).convert("L").convert("RGB")
                output = model(**processor(image, return_tensors="pt"), output_hidden_states=True)
                for features, layers in zip(found, choices, strict=True):
                    states = chosen_features(output, layers)
                    features.append(states.mean((2, 3) if states.ndim == 4 else 1)[0].numpy())
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(file, *map(np.stack, found))
        with np.load(file) as kept:
            return [kept[name] for name in kept.files]


def losses(probabilities: np.ndarray, contains: np.ndarray) -> np.ndarray:
    """Nats per micrograph, (n,), of words' probabilities (n, words) or (words,)."""
    p = np.clip(probabilities, 0.005, 0.995)
    return -(contains * np.log(p) + (1 - contains) * np.log(1 - p)).sum(1)


def predicted(train: np.ndarray, said: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    """Probabilities (n, words) of the words of test micrographs."""
    scaler, usual = StandardScaler().fit(train), said.mean(0)
    ridge = Ridge(alpha=penalty * train.size / 100).fit(scaler.transform(train), said - usual)
    return usual + ridge.predict(scaler.transform(test))


def gain(
    train: Split, test: Split, seen: np.ndarray, shown: np.ndarray
) -> tuple[np.ndarray, float]:
    """Nats that features save on each test micrograph, and the penalty that was chosen.

    Args:
        seen, shown: features of the training and of the test micrographs.
    """
    cost = dict.fromkeys(PENALTIES, 0.0)
    for kept, held in GroupKFold(5).split(seen, groups=train.groups):
        for penalty in PENALTIES:
            p = predicted(seen[kept], train.contains[kept], seen[held], penalty)
            cost[penalty] += losses(p, train.contains[held]).sum()
    penalty = min(cost, key=cost.get)
    usual = losses(train.contains.mean(0), test.contains)
    return usual - losses(predicted(seen, train.contains, shown, penalty), test.contains), penalty


def category_gain(train: Split, test: Split) -> np.ndarray:
    """Nats that the true category saves on each test micrograph."""
    usual = train.contains.mean(0)
    of_category = []
    for category in test.categories:
        own = train.contains[train.categories == category]
        of_category.append((own.sum(0) + SMOOTHING * usual) / (len(own) + SMOOTHING))
    return losses(usual, test.contains) - losses(np.array(of_category), test.contains)


def main() -> None:
    args = _parser().parse_args()
    keep_freed_memory()
    choices = [[int(layer) for layer in text.split(",")] for text in args.layers]
    train = Split(load_micrographs(args.dataset, "train"))
    test = Split(load_micrographs(args.dataset, "validation"), train.words)
    saved = {"the true category": (category_gain(train, test), None, None)}
    for vision in args.vision:
        pairs = (s.features(vision, choices, args.output_dir) for s in (train, test))
        for text, seen, shown in zip(args.layers, *pairs, strict=True):
            name = f"{Path(vision).name}, layers {text}"
            saved[name] = (*gain(train, test, seen, shown), seen.shape[1])
    rows, results = [], {}
    for name, (nats, penalty, width) in saved.items():
        ((low, high),) = mean_intervals(nats[:, None], test.groups)
        mean = float(nats.mean())
        about = [str(x or "") for x in (width, penalty)]
        rows.append([name, about[0], f"{mean:.2f} [{low:.2f}, {high:.2f}]", about[1]])
        results[name] = {"nats": mean, "low": low, "high": high, "width": width}
    title = f"{len(train.words)} words, {len(test.groups)} micrographs"
    print(markdown(Table(title, ["", "width", "nats saved per micrograph", "penalty"], rows)))
    write_json(args.output_dir / "eyes.json", results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", required=True, help="real micrographs with answers, train and validation")
    add("--vision", nargs="+", required=True, help="vision models: folders or Hub ids")
    add("--layers", nargs="+", default=["-1"], help="hidden states, as in -1 or 5,8,11 (-1)")
    add("--output_dir", type=Path, default=Path("runs/eyes"), help="for features and figures")
    return parser


if __name__ == "__main__":
    main()
