"""What simulated micrographs teach about real ones: train on simulated, classify real.

    python benchmarks/transfer.py --count 1350 --seed 0 --real data/micrographs \
        --vision google/efficientnet-b0 --output_dir transfer

A logistic regression on the mean features of a frozen vision encoder learns the ten categories from
simulated micrographs alone and is scored on both splits of a dataset of real ones, of which it has
seen nothing. The number judges a change of the renderer: choose by `train`, which is larger, and
quote `validation`. `Other` is left out.

`--dataset` takes a folder of simulated micrographs instead of rendering them. `--real_train` adds
the split `train` of a real dataset to the training rows; then `train` is not scored. Features of
real micrographs are kept in the output folder for the next call. `--cross_validate` prints what
chose `STRENGTH`: accuracy on held-out simulated scenes, no real micrograph involved.
"""

import argparse
import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoImageProcessor, AutoModel

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.evaluation.categories import score_categories
from mvaema.evaluation.intervals import mean_intervals
from mvaema.files import write_json
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.synthetic.dataset import SyntheticSplit, rows

STRENGTH = 0.01  # inverse of the L2 penalty, on standardised features
LABELS = list(CATEGORY_CAPTIONS)


class Encoder:
    """The mean features of a frozen vision encoder."""

    def __init__(self, name: str):
        self.processor = AutoImageProcessor.from_pretrained(name)
        self.model = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
        digest = hashlib.sha256(repr(self.processor.to_dict()).encode())
        for tensor in self.model.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        """Features (n, d) of grey micrographs: the mean over the places of the last layer."""
        grey = [image.convert("L").convert("RGB") for image in images]
        states = self.model(**self.processor(grey, return_tensors="pt")).last_hidden_state
        # A feature map is (n, d, height, width), a sequence of tokens (n, tokens, d).
        return states.mean((2, 3) if states.ndim == 4 else 1).numpy()


def embed(encoder: Encoder, images, batch: int = 32) -> np.ndarray:
    """Features (n, d) of an iterable of images, few of which are in memory at a time."""
    features, waiting = [], []
    for image in images:
        waiting.append(image)
        if len(waiting) == batch:
            features.append(encoder(waiting))
            waiting = []
    if waiting:
        features.append(encoder(waiting))
    return np.concatenate(features)


def real_rows(encoder: Encoder, source: str, split: str, cache: Path) -> tuple[list[dict], object]:
    """The rows of a real split that have one of the ten categories, and their features (n, d)."""
    dataset = load_micrographs(source, split)
    dataset = dataset.filter(lambda row: row["category"] in LABELS)
    columns = [c for c in ("image_id", "category", "modality", "group") if c in dataset.features]
    facts = dataset.select_columns(columns).to_list()
    key = hashlib.sha256(f"{encoder.fingerprint} {facts}".encode()).hexdigest()[:16]
    path = cache / f"features-{key}.npy"
    if not path.is_file():
        features = embed(encoder, map(decode_image, dataset))
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, features)
    return facts, np.load(path)


def simulated_rows(encoder: Encoder, args: argparse.Namespace) -> tuple[list[dict], np.ndarray]:
    """Category and group of the simulated training rows, and their features (n, d)."""
    made = (
        load_micrographs(args.dataset, "train")
        if args.dataset
        else rows(SyntheticSplit(seed=args.seed), args.count, workers=args.workers)
    )
    facts = []

    def images():
        for row in made:
            facts.append({"category": row["category"], "group": row["group"]})
            yield Image.open(io.BytesIO(row["image"]["bytes"]))

    features = embed(encoder, images())
    return facts, features


def classifier(strength: float) -> Pipeline:
    regression = LogisticRegression(C=strength, max_iter=500)
    return make_pipeline(StandardScaler(), regression)


def cross_validate(features: np.ndarray, facts: list[dict]) -> None:
    """Print the accuracy on held-out simulated scenes for several strengths."""
    categories, groups = [f["category"] for f in facts], [f["group"] for f in facts]
    for strength in (0.0001, 0.001, 0.01, 0.1, 1.0):
        folds = GroupKFold(5)
        scores = cross_val_score(
            classifier(strength), features, categories, groups=groups, cv=folds
        )
        print(f"  C = {strength:g}: {scores.mean():.3f} on held-out simulated scenes")


def score(model: Pipeline, facts: list[dict], features: np.ndarray) -> dict:
    """Scores of real rows, with an interval over groups for top-1 and by modality."""
    probabilities = np.zeros((len(facts), len(LABELS)))
    probabilities[:, [LABELS.index(c) for c in model.classes_]] = model.predict_proba(features)
    records = [
        fact | {"probabilities": dict(zip(LABELS, p, strict=True))}
        for fact, p in zip(facts, probabilities, strict=True)
    ]
    result = score_categories(records, LABELS)
    true = np.array([fact["category"] for fact in facts])
    guess = np.array(LABELS)[probabilities.argmax(1)]
    modality = np.array([fact.get("modality") or "unknown" for fact in facts])
    groups = np.array([fact.get("group") or fact["image_id"] for fact in facts])
    result["by_modality"] = {}
    for name in sorted(set(modality)):
        of = modality == name
        hits = (true[of] == guess[of]).astype(float)
        result["by_modality"][name] = {
            "n": int(of.sum()),
            "top_1": float(hits.mean()),
            "interval": list(mean_intervals(hits[:, None], groups[of])[0]),
            "macro_f1": float(
                f1_score(true[of], guess[of], labels=sorted(set(true[of])), average="macro")
            ),
        }
    return result


def report(split: str, result: dict) -> None:
    low, high = result["top_1_interval"]
    print(
        f"{split}: {result['n']} real micrographs, top-1 {result['top_1']:.3f} "
        f"[{low:.3f}, {high:.3f}], macro F1 {result['macro_f1']:.3f}"
    )
    for name, m in result["by_modality"].items():
        low, high = m["interval"]
        interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        print(f"  {name:8s}{m['n']:4d}  top-1 {m['top_1']:.2f}{interval}  F1 {m['macro_f1']:.2f}")
    for row, (name, per) in zip(
        result["confusion_matrix"], result["per_class"].items(), strict=True
    ):
        if per["support"]:
            wrong = Counter(dict(zip(LABELS, row, strict=True)))
            del wrong[name]
            taken = ", ".join(f"{k} {v}" for k, v in wrong.most_common(4) if v)
            print(
                f"  {name:28s}{per['support']:4d}  recall {per['recall']:.2f}  precision "
                f"{per['precision']:.2f}  taken for {taken or 'no other'}"
            )


def main():
    parser = argparse.ArgumentParser(description="Train on simulated micrographs, classify real.")
    add = parser.add_argument
    add("--dataset", help="folder of simulated micrographs (rendered on the spot without it)")
    add("--count", type=int, default=1350, help="micrographs to render (1350)")
    add("--seed", type=int, default=0, help="seed of the renderer (0)")
    add("--real", required=True, help="dataset of real micrographs, train and validation")
    add("--real_train", help="dataset whose split train joins the training rows")
    add("--vision", required=True, help="vision encoder: a folder or a Hub id")
    add("--output_dir", type=Path, required=True, help="for the scores and cached features")
    add("--workers", type=int, help="processes that render (one per core)")
    add("--cross_validate", action="store_true", help="print what chose the regularisation")
    args = parser.parse_args()
    encoder = Encoder(args.vision)
    facts, features = simulated_rows(encoder, args)
    if args.cross_validate:
        cross_validate(features, facts)
    splits = ["train", "validation"]
    if args.real_train:
        more, real = real_rows(encoder, args.real_train, "train", args.output_dir)
        facts, features = [*facts, *more], np.concatenate([features, real])
        splits.remove("train")
    model = classifier(STRENGTH).fit(features, [fact["category"] for fact in facts])
    results = {"arguments": {k: str(v) for k, v in vars(args).items()}, "trained_on": len(facts)}
    for split in splits:
        real, real_features = real_rows(encoder, args.real, split, args.output_dir)
        results[split] = score(model, real, real_features)
        report(split, results[split])
    write_json(args.output_dir / "transfer.json", results)


if __name__ == "__main__":
    main()
