"""Encoders that are fine-tuned or probed, and controls; tiny ones, saved on the spot."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from support.row_checks import build, check_evaluation, reached, same, state, stripes_and_dots
from support.row_checks import train as train_steps
from support.vision_models import MODELS, save_vision
from transformers import AutoImageProcessor, AutoModel

from baselines.beyond import MICRONET, REGULARISATION, ROWS, ProbeRow, features, regression
from baselines.data import plain_pixels
from baselines.encoders import Probe, open_encoder
from baselines.registry import with_weights
from baselines.rows import Shapes
from baselines.training import RowFailed
from mvaema.students.vision import vision_config

NAMES = {row.name: row for row in ROWS}
kinds = pytest.mark.parametrize("kind", ["dinov2", "siglip", "convnext", "resnet", "efficientnet"])


def shapes(pretrained: str) -> Shapes:
    return Shapes(2, 32, pretrained)


@pytest.fixture
def saved(tmp_path):
    def save(kind: str = "dinov2", **images):
        save_vision(tmp_path / kind, MODELS[kind](), **images)
        return str(tmp_path / kind)

    return save


@kinds
def test_features_are_the_mean_of_what_the_checkpoint_sees(kind, saved, images):
    folder = saved(kind, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    encoder = open_encoder(folder, 32).eval()
    pixels = torch.from_numpy(np.stack([plain_pixels(image, 32) for image in images]))
    model = AutoModel.from_pretrained(folder, config=vision_config(folder)).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    # Resized by us, normalised by its own processor.
    resized = [((p.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy() for p in pixels]
    inputs = processor(resized, return_tensors="pt", do_resize=False)
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
        expected = states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-4, rtol=1e-4)
    assert encoder.width == expected.shape[1]


@kinds
def test_a_tuned_encoder_learns_with_all_its_weights(kind, saved):
    torch.manual_seed(0)
    learner = NAMES["encoder-tuned"].build(shapes(saved(kind))).train()
    pictures, labels = stripes_and_dots(32)
    names = reached(learner, learner.loss(pictures, labels))
    assert names == {n for n, p in learner.named_parameters() if p.requires_grad}
    assert {"norm.weight", "head.weight"} < names and len(names) > 6
    losses = train_steps(learner, lambda: learner.loss(pictures, labels), 1e-3, 20)
    assert sum(losses[-3:]) < sum(losses[:3])


def test_batch_statistics_of_a_pretrained_network_stay(saved):
    learner = NAMES["encoder-tuned"].build(shapes(saved("resnet"))).train()
    before = state(learner)
    learner.loss(*stripes_and_dots(32))
    assert any("running_mean" in name for name in before)
    assert same(state(learner), before)


def test_a_probe_leaves_the_encoder_untouched_and_is_better_than_guessing(saved, run):
    folder, kept = saved("convnext"), []

    def opened(name, image_size):
        kept.append(open_encoder(name, image_size))
        kept.append(state(kept[0]))
        return kept[0]

    row = replace(with_weights(NAMES["encoder-probe"], folder), open=opened)
    outcome = row.train_and_score(run)
    assert same(state(kept[0]), kept[1])
    assert outcome.figures["top_1"] > 0.8 > outcome.figures["blind_top_1"]
    assert outcome.trainable_parameters == (kept[0].width + 1) * 2
    history = outcome.training["training"]
    assert history.micrographs == len(run.data.micrographs(32).train.labels)


def test_a_probe_is_scikit_learns_regression(saved, data):
    encoder = open_encoder(saved("dinov2"), 32).eval()
    seen = data.micrographs(32)
    train, valid = (features(encoder, seen, part) for part in (seen.train, seen.validation))
    probe = Probe(encoder, 2)
    both = (train, seen.train.labels), (valid, seen.validation.labels)
    probe.set_layer(*regression(*both, classes=2))
    mean, std = train.mean(axis=0), train.std(axis=0)
    candidates = []
    for strength in REGULARISATION:
        model = LogisticRegression(C=strength, max_iter=2000)
        model.fit((train - mean) / std, seen.train.labels)
        guesses = model.predict_proba((valid - mean) / std)
        loss = -np.log(guesses[np.arange(len(valid)), seen.validation.labels]).mean()
        candidates.append((loss, guesses))
    pixels = torch.cat([batch.pixel_values for batch in seen.plain_batches(seen.validation)])
    with torch.no_grad():
        found = probe(pixels).softmax(1).numpy()
    np.testing.assert_allclose(found, min(candidates, key=lambda c: c[0])[1], atol=1e-3)


def test_a_category_without_training_micrographs_is_never_guessed():
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(60, 4)), np.arange(60) % 3 * 2  # 0, 2 and 4 of five
    inputs[np.arange(60), labels // 2] += 4
    weight, bias = regression((inputs, labels), (inputs, labels), classes=5)
    guesses = (torch.from_numpy(inputs).float() @ weight.T + bias).argmax(1).numpy()
    assert (guesses == labels).mean() > 0.9 and not {1, 3} & set(guesses)


def test_one_category_cannot_be_probed():
    ones = np.ones((4, 2)), np.ones(4, int)
    with pytest.raises(RowFailed, match="one category"):
        regression(ones, ones, classes=3)


def test_the_control_has_random_weights_and_sees_little(run):
    row = NAMES["random-probe"]
    assert isinstance(row, ProbeRow) and row.pretrained is None
    torch.manual_seed(0)
    first = row.open(None, 28)
    torch.manual_seed(1)
    second = row.open(None, 28)
    pictures, _ = stripes_and_dots(28, 2)
    assert not torch.allclose(first(pictures), second(pictures))
    assert first.width == 384


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.pretrained is not None])
def test_a_checkpoint_that_is_not_there_is_named(name):
    row = replace(NAMES[name], pretrained="nowhere/at-all")
    with pytest.raises(RowFailed, match="nowhere/at-all"):
        if isinstance(row, ProbeRow):
            row.open(row.pretrained, 32)
        else:
            row.build(shapes("nowhere/at-all"))


def test_the_small_network_learns():
    row = NAMES["small-cnn"]
    learner = build(row, 32)
    pictures, labels = stripes_and_dots(32)
    losses = train_steps(learner, lambda: learner.loss(pictures, labels), row.learning_rate, 12)
    assert losses[-1] < losses[0] / 2
    check_evaluation(row, 96)


@pytest.mark.slow
def test_micronets_weights_are_read_from_their_file(tmp_path):
    """As the file of NASA's: torchvision's names behind `module.`, a classifier of 54 materials."""
    timm = pytest.importorskip("timm", reason="needs the environment of `make baselines`")
    torch.manual_seed(3)
    source = timm.create_model("resnet50", num_classes=54)
    weights = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / MICRONET)
    learner = NAMES["micronet-tuned"].build(shapes(str(tmp_path / MICRONET))).eval()
    pictures, _ = stripes_and_dots(64, 2)
    with torch.no_grad():
        ours = learner.model.forward_features(pictures)
        torch.testing.assert_close(ours, source.eval().forward_features(pictures))
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(RowFailed, match="does not hold"):
        NAMES["micronet-tuned"].build(shapes(str(tmp_path / "other.pth")))
