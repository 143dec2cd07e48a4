"""The student that comes with this repository, for commands that are not told another.

What is special about it: it lies at the repository's root, which is a model repository, so it is
there in a clone, an editable install and the container, and not in an ordinary install.
"""

import json
from pathlib import Path

from configuration_mvaema import MVaEMaConfig

ROOT = Path(__file__).parents[2]
NAME_OF_SHIPPED = "mvaema"  # that clients know it by


def shipped_student(root: Path = ROOT) -> str:
    """The folder of the shipped student.

    Raises:
        FileNotFoundError: there is none; the message says how to get one.
    """
    config = root / "config.json"
    is_student = config.is_file() and (root / "model.safetensors").is_file()
    if is_student:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        is_student = kind == MVaEMaConfig.model_type
    if not is_student:
        raise FileNotFoundError(
            f"no student comes with this installation: {root} holds none. Name yours with --model, "
            "a folder or Hub id; a clone of the repository has one at its root, and `mvaema demo` "
            "trains one to demo/student."
        )
    return str(root)
