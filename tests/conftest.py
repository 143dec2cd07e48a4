"""Tiny models and data made on the spot; nothing here needs a network or a download."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread for each process, before any library that counts cores is imported: the models are
# tiny, and threads of several workers get in each other's way. Processes that a test starts
# inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("VECLIB_MAXIMUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

# Before transformers imports torchvision.
import baselines.environment  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_student import save_tiny_student

from configuration_mvaema import CATEGORY_CAPTIONS, CATEGORY_QUESTION, QUESTIONS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from processing_mvaema import MVaEMaProcessor, train_tokenizer

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_image_layers": 2,
    "num_text_layers": 2,
    "projection_dim": 16,
    "max_position_embeddings": 64,
    # Larger than in training, so that every weight leaves its mark on the outputs.
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def processor() -> MVaEMaProcessor:
    texts = [*CATEGORY_CAPTIONS.values(), CATEGORY_QUESTION, *QUESTIONS.values()]
    return MVaEMaProcessor.from_tokenizer(train_tokenizer(texts * 2, 500, 64), 32, 64)


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory) -> Path:
    """The folder of a tiny student."""
    return save_tiny_student(tmp_path_factory.mktemp("tiny") / "student")


@pytest.fixture(scope="session")
def exported(tiny_student, tmp_path_factory) -> Path:
    """The same student as `mvaema export` writes it; tracing its graphs takes most of a minute."""
    from mvaema.commands.export import main

    target = tmp_path_factory.mktemp("bench") / "exported"
    assert main([str(tiny_student), "--onnx", str(target)]) == 0
    return target


@pytest.fixture
def make_model(processor):
    """A tiny student in evaluation mode; fields of the configuration may be overridden."""

    def make(**overrides) -> MVaEMaModel:
        torch.manual_seed(0)
        model = MVaEMaModel(MVaEMaConfig(**{**TINY, **processor.token_fields(), **overrides}))
        # Fresh biases and norms are 0 and 1, which would hide a mistake about them.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim <= 1 and parameter is not model.log_temperature:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.processor = processor
        return model.eval()

    return make


@pytest.fixture
def model(make_model) -> MVaEMaModel:
    return make_model()


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 64), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture
def batch(processor, images) -> dict[str, torch.Tensor]:
    """Four micrographs, two questions about each, one statement about each."""
    return dict(
        processor(
            images=images,
            text=[["What is it?", "How large are the structures, roughly?"]] * 4,
            answers=["wires", "about 5 nm", "a film", "20 µm", "a tip", "1 mm", "pores", "no idea"],
            statements=["wires of 5 nm", "a film", "a sharp tip", "pores in a sponge"],
        )
    )
