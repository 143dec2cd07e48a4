"""A fixed tiny student computes what it computed when its numbers were stored.

Its weights are a formula, so nothing but the expected numbers is stored. `.ci/versions.py` runs
this module on the oldest and the newest transformers that are supported, too. To store them anew
after a change that is meant to change them:

    PYTHONPATH=. python tests/model/test_stored_logits.py
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch

from configuration_mvaema import MVaEMaConfig
from modeling_mvaema import MVaEMaModel

STORED = Path(__file__).parents[1] / "data" / "logits.json"
CONFIG = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_image_layers": 1,
    "num_text_layers": 2,
    "vocab_size": 23,
    "max_position_embeddings": 16,
    "projection_dim": 8,
}
VARIANTS = {
    "plain": {},
    "instruction_aware": {"instruction_aware": True},
    "without self-attention": {"use_self_attention": False},
    "without cross-attention": {"use_cross_attention": False},
    "without causal mask": {"use_causal_mask": False},
}


def waves(shape: torch.Size, phase: int) -> torch.Tensor:
    """Numbers between -1 and 1 that no random generator has to repeat."""
    count = torch.Size(shape).numel()
    angles = torch.arange(count, dtype=torch.float64) * 0.7 + phase
    return (angles.sin() * (angles * 0.37).cos()).view(shape).float()


def student(folder: Path, **fields) -> MVaEMaModel:
    model = MVaEMaModel(MVaEMaConfig(**CONFIG, **fields))
    with torch.no_grad():
        for phase, (name, parameter) in enumerate(sorted(model.named_parameters())):
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + 0.4 * waves(parameter.shape, phase))
    model.save_pretrained(folder)
    return MVaEMaModel.from_pretrained(folder).eval()


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 23).view(3, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    return {
        "pixel_values": waves((3, 3, 16, 16), 5),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.flip(0).masked_fill(mask == 0, -100),
        "statement_ids": ids.flip(1),
        "statement_mask": mask,
    }


@torch.no_grad()
def computed(folder: Path, **fields) -> dict[str, list]:
    model = student(folder, **fields)
    output = model(**inputs())
    prompt = {name: inputs()[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    words = model.generate(**prompt, max_new_tokens=6, min_new_tokens=6)
    scalars = [output[name].item() for name in ("itc_loss", "itm_loss", "lm_loss")]
    return {
        "losses": scalars,
        "logits": output.logits[:, 1, :8].tolist(),
        "logits_per_image": output.logits_per_image.tolist(),
        "words": words.tolist(),
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_the_numbers_are_those_that_were_stored(tmp_path, name):
    stored = json.loads(STORED.read_text())[name]
    for field, values in computed(tmp_path, **VARIANTS[name]).items():
        expected, got = torch.tensor(stored[field]), torch.tensor(values)
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5, msg=field)


if __name__ == "__main__":
    numbers = {}
    for name, fields in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            numbers[name] = computed(Path(folder), **fields)
    lines = [f'"{name}": {json.dumps(values)}' for name, values in numbers.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
