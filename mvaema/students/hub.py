"""python -m mvaema.students.hub runs/first lab/student --report runs/first-report --license apache-2.0

Uploads a trained student to the Hugging Face Hub, or to the hub that HF_ENDPOINT names: private
unless --public, with its model card. `train.py --push_to_hub` does the same after training.

What is special about it:
- only the files of a model repository are sent, by a list of what may go: no checkpoints to resume
  from, logs, recipes, sample answers or reports;
- before anything is sent, every file is searched for places on this machine, and a student that
  names one stays here;
- adapters whose base is a folder go merged: nobody else could load them.
"""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HTTPError

from mvaema.students.card import SOURCES, hub_id, read_run, write_card
from mvaema.students.lora import base_of, merge_adapters

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


def require_token() -> None:
    """Refuse before long work what would fail after it.

    Raises:
        PermissionError: this machine has no token for the Hub.
    """
    if get_token() is None:
        raise PermissionError(
            "uploading needs a token for the Hub: run `hf auth login`, or set HF_TOKEN."
        )


def push(folder: Path, repo_id: str, private: bool = True) -> str:
    """Upload a student, or its adapters, with its README.md, which is written if there is none.

    The upload is one commit; it removes what an earlier student has left in the repository.

    Args:
        folder: of a finished run.
        repo_id: "owner/name"; it is created unless it is there.
        private: refuse a repository that everybody can see; a new one is made private.

    Returns:
        the address of the repository.

    Raises:
        FileNotFoundError: `folder` holds no student.
        PermissionError: there is no token, or the repository is public and should not be.
        ValueError: a file names a place on this machine.
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
        source = folder
        if base is not None and hub_id(base) is None:
            source = Path(temporary)
            merge_adapters(folder, source)
            shutil.copy(folder / CARD, source / CARD)
            base = None
        patterns = (CARD, *(STUDENT_FILES if base is None else ADAPTER_FILES))
        files = sorted({file for pattern in patterns for file in source.glob(pattern)})
        _check_places(files, folder)
        api = HfApi()
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.model_info(url.repo_id).private:
                raise PermissionError(
                    f"{url.repo_id} is public already, so nothing was uploaded; make it private, "
                    "choose another repository, or say that it may be public (--public, in "
                    "train.py --hub_public)."
                )
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=source,
                allow_patterns=[file.name for file in files],
                delete_patterns=[*STUDENT_FILES, *ADAPTER_FILES],
                commit_message="Upload a student",
            )
        except PermissionError:
            raise
        except (HTTPError, OSError, RuntimeError) as error:
            raise ConnectionError(
                f"the student was not uploaded to {repo_id}: {str(error).strip()}\nIt is complete "
                f"in {folder}; upload it with: python -m mvaema.students.hub {folder} {repo_id}"
            ) from error
    return str(url)


def _check_places(files: list[Path], folder: Path) -> None:
    """Refuse files in which a place on this machine is named."""
    settings, run = read_run(folder)
    published = run.get("hub_ids", {})
    local = [Path(settings[n]) for n in SOURCES if settings.get(n) and n not in published]
    if (base := base_of(folder)) is not None and hub_id(base) is None:
        local.append(Path(base))
    places = [*local, folder, Path.home(), Path.cwd()]
    # "/data" or "runs" says nothing of a lab, and may well be a token of a tokenizer.
    names = {str(path.resolve()) for path in places if len(path.resolve().parts) > 2}
    names |= {str(path) for path in places if not path.is_absolute() and len(path.parts) > 1}
    pattern = re.compile(b"|".join(re.escape(n.encode()) + rb"(?!\w)" for n in sorted(names)))
    for file in files:
        if names and (found := pattern.search(file.read_bytes())):
            raise ValueError(
                f"{file.name} names a place on this machine, {found[0].decode()!r}, so nothing was "
                f"uploaded; take it out of {folder / file.name}."
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mvaema.students.hub",
        description="Upload a student to the Hugging Face Hub.",
    )
    parser.add_argument("folder", type=Path, help="output_dir of a training run")
    parser.add_argument("repo_id", help="repository, as in lab/student")
    parser.add_argument("--public", action="store_true", help="let everybody see it")
    parser.add_argument(
        "--report", type=Path, help="output_dir of eval.py; its figures enter a new README.md"
    )
    parser.add_argument("--license", help="licence for a new README.md, as in apache-2.0")
    args = parser.parse_args()
    try:
        if args.report or args.license:
            write_card(args.folder, args.repo_id, args.license, args.report)
        print(push(args.folder, args.repo_id, private=not args.public))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
