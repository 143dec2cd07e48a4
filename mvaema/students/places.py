"""Sources of a student: Hub repositories, which may be named in public, and folders, which may not.

A lab's paths tell of its customers and projects. A source counts as a Hub repository only if it
can be nothing else, judged from the folder in which the run starts: a relative path looks the same
from another one.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# Settings of a training run that name a folder or a Hub repository.
SOURCES = ("dataset", "train_also", "model", "vision", "text", "tokenizer")


def hub_ids(settings: Mapping[str, object]) -> dict[str, str]:
    """Those of a run's `SOURCES` that are Hub repositories, by the setting's name.

    Of several in one setting, all must be.
    """
    found = {name: sources_in(settings.get(name)) for name in SOURCES}
    return {name: settings[name] for name, own in found.items() if own and all(map(hub_id, own))}


def sources_in(value: object) -> list[str]:
    """The sources that a setting names: none, one or several."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def hub_id(source: str | None) -> str | None:
    """`source` if it can only be the id of a Hub repository, else None."""
    if source is None or "/" not in source or Path(source).exists():
        return None
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source


def public_name(source: str) -> str:
    """What a student is called where others read it: its Hub id, or the name of its folder."""
    return hub_id(source) or Path(source).resolve().name or "student"


def refuse_places(files: Iterable[Path], folder: Path, local: Iterable[str]) -> None:
    """Refuse files that name a place on this machine.

    Args:
        files: what is about to be uploaded.
        folder: of the training run.
        local: the run's sources that are no Hub repositories.

    Raises:
        ValueError: a file names one of them, the run's folder, the home or the current folder.
    """
    places = [*map(Path, local), folder, Path.home(), Path.cwd()]
    # "/data" or "runs" reveals nothing about a lab, and may well be a token of a tokenizer.
    names = {str(path.resolve()) for path in places if len(path.resolve().parts) > 2}
    names |= {str(path) for path in places if not path.is_absolute() and len(path.parts) > 1}
    pattern = re.compile(b"|".join(re.escape(n.encode()) + rb"(?!\w)" for n in sorted(names)))
    for file in files:
        if names and (found := pattern.search(file.read_bytes())):
            raise ValueError(
                f"{file.name} contains a path of this machine, {found[0].decode()!r}. Nothing was "
                f"uploaded. Remove the path from {folder / file.name} and upload again."
            )
