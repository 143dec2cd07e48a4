"""The files of a model repository: a kill or a full disk never leaves half of one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_mvaema import MVaEMaModel


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of `folder`, each atomically, the weights last.

    Nothing is replaced when the body raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        yield Path(temporary)
        files = sorted(Path(temporary).iterdir(), key=lambda f: f.suffix == ".safetensors")
        mode = files[0].stat().st_mode
        for file in files:
            # safetensors makes its files readable by their owner only; the others are not.
            file.chmod(mode)
            file.replace(folder / file.name)


def save_repository(model: MVaEMaModel, folder: Path, state: dict | None = None) -> None:
    """Model, processor and code into `folder`: all that `AutoModel.from_pretrained` needs.

    Args:
        state: the weights, where the model does not hold them all (sharded training).
    """
    with replacing_files(folder) as temporary:
        model.save_pretrained(temporary, state_dict=state)
