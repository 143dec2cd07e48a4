"""Uploads a trained student to the Hugging Face Hub, or to the hub that HF_ENDPOINT names.

What is special about it:
- only the files of a model repository are sent, by a list of what may go: no checkpoints to resume
  from, logs, recipes, sample answers or reports;
- before anything is sent, every file is searched for paths of this machine (`places.py`);
- adapters whose base is a folder are uploaded merged: nobody else could load them.
"""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from mvaema.hub import private_repository, require_token
from mvaema.students.card import read_run, write_card
from mvaema.students.loading import base_of
from mvaema.students.places import SOURCES, hub_id, refuse_places, sources_in

CARD = "README.md"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
STUDENT_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "*_mvaema.py",
)


def push(folder: Path, repo_id: str, public: bool = False) -> str:
    """Upload a student, or its adapters, and its README.md, which is written if there is none.

    The upload is one commit. It removes what an earlier student has left in the repository.

    Args:
        folder: of a finished run.
        repo_id: "owner/name"; created unless it is there.
        public: whether everybody may see it. Otherwise a new repository is private, and a public
            one is refused.

    Returns:
        the address of the repository.

    Raises:
        FileNotFoundError: `folder` holds no student.
        PermissionError: there is no token, or the repository is public and should not be.
        ValueError: a file names a path of this machine.
        ConnectionError: the Hub refused the upload or cannot be reached; nothing here is lost.
    """
    folder = Path(folder)
    require_token()
    base = base_of(folder)
    if base is None and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no student to upload (no config.json).")
    if not (folder / CARD).is_file():
        write_card(folder, repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        source, names = folder, STUDENT_FILES
        if base is not None and hub_id(base) is not None:
            names = ADAPTER_FILES
        elif base is not None:
            from mvaema.students.lora import merge_adapters

            source = Path(temporary)
            merge_adapters(folder, source)
            shutil.copy(folder / CARD, source / CARD)
        files = sorted({file for name in (CARD, *names) for file in source.glob(name)})
        refuse_places(files, folder, _local_sources(folder, base))
        return _upload(files, repo_id, public, folder)


def _local_sources(folder: Path, base: str | None) -> list[str]:
    """The folders that a run has taken its data and its weights from."""
    settings, run = read_run(folder)
    published = run.get("hub_ids", {})
    private = [name for name in SOURCES if name not in published]
    found = [source for name in private for source in sources_in(settings.get(name))]
    return found if base is None or hub_id(base) else [*found, base]


def _upload(files: list[Path], repo_id: str, public: bool, folder: Path) -> str:
    """The address of the repository that now has these files of one directory."""
    api = HfApi()
    try:
        url = private_repository(api, repo_id, "model", public)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=files[0].parent,
            allow_patterns=[file.name for file in files],
            delete_patterns=[*STUDENT_FILES, *ADAPTER_FILES],
            commit_message="Upload a student",
        )
    except PermissionError:
        raise
    except (HTTPError, OSError, RuntimeError) as error:
        raise ConnectionError(
            f"the student was not uploaded to {repo_id}: {str(error).strip()}\nIt is complete in "
            f"{folder}. Upload it later: mvaema push {folder} {repo_id}"
        ) from error
    return str(url)
