"""A student of a few thousand weights, complete with tokenizer, and a dataset to ask it about."""

from pathlib import Path

import torch

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.students.repository import save_repository
from processing_mvaema import MVaEMaProcessor, train_tokenizer
from support.micrograph_data import write_dataset

MAX_NEW_TOKENS = 6
LABELS = ("Nanowires", "Particles", "Tips")


def save_tiny_student(folder: Path, seed: int = 0) -> Path:
    """A model repository. Its weights are large and random, so that its answers vary."""
    texts = [*CATEGORY_CAPTIONS.values(), *QUESTIONS.values(), "The scale bar marks 1 µm."]
    processor = MVaEMaProcessor.from_tokenizer(train_tokenizer(texts * 2, 500, 128), 32, 128)
    torch.manual_seed(seed)
    config = MVaEMaConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_image_layers=2,
        num_text_layers=2,
        projection_dim=16,
        max_position_embeddings=128,
        initializer_range=0.2,
        categories={name: CATEGORY_CAPTIONS[name] for name in LABELS},
        **processor.token_fields(),
    )
    model = MVaEMaModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # fresh biases and norms are 0 and 1
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.processor = processor
    save_repository(model.eval(), folder)
    return folder


def write_splits(folder: Path, **column) -> Path:
    """12 training and 6 validation micrographs; `column` replaces values of the latter."""
    write_dataset(folder, 12)
    return write_dataset(folder, 6, "validation", first=20, **column)
