"""Micrographs that a row learns to tell apart in a few steps, and what a run needs."""

import pytest
import torch
from accelerate import Accelerator
from support.micrograph_data import write_dataset

from baselines.data import Data
from baselines.settings import Run, Settings


@pytest.fixture(scope="session")
def stripes_and_dots(tmp_path_factory):
    """Folder of 40 micrographs of ten specimens."""
    return write_dataset(tmp_path_factory.mktemp("micrographs") / "data", 40)


@pytest.fixture(scope="session")
def settings(stripes_and_dots) -> Settings:
    return Settings(str(stripes_and_dots), folds=5, image_size=32, batch_size=8, epochs=3)


@pytest.fixture(scope="session")
def data(settings):
    return Data(settings).fold(0)


@pytest.fixture
def run(settings, data, tmp_path) -> Run:
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    return Run(settings, data, 0, tmp_path, accelerator)
