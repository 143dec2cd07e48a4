"""transformers' own test suites, of the very version that is installed.

    python tests/support/transformers_tests.py .venv/transformers-tests

fetches them: the wheel leaves them out, the source distribution on the package index has the
common ones (`test_modeling_common.py` and its neighbours). A git checkout of transformers has all;
the environment variable TRANSFORMERS_TESTS names its `tests` folder.
"""

import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import transformers

PACKAGE = "transformers_tests"
# What the suites import and the source distribution lacks. A class that is absent tests nothing.
ABSENT = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}


def fetch(folder: Path) -> None:
    """Put the `tests` of the installed version's source distribution into a folder."""
    requirement = f"transformers=={transformers.__version__}"
    options = ["--no-deps", "--no-binary", "transformers", "--quiet"]
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", *options, "-d", downloads, requirement]
        subprocess.run(command, check=True)
        (archive,) = Path(downloads).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                parts = Path(member.name).parts
                if member.isfile() and parts[1:2] == ("tests",):
                    member.name = str(Path(*parts[2:]))
                    tar.extract(member, folder, filter="data")
    (folder / "VERSION").write_text(transformers.__version__)


def folder() -> Path | None:
    """Where the suites of the installed version are; None where they are not."""
    if checkout := os.environ.get("TRANSFORMERS_TESTS"):
        return Path(checkout)
    fetched = Path(sys.prefix) / "transformers-tests"
    version = fetched / "VERSION"
    if version.is_file() and version.read_text() == transformers.__version__:
        return fetched
    return None


def load(name: str) -> ModuleType:
    """A module of the suites, such as `test_modeling_common`."""
    if PACKAGE not in sys.modules:
        _package(PACKAGE, folder())
        for path, contents in ABSENT.items():
            parent = path.split(".")[0]
            if not (folder() / parent).is_dir():
                _package(f"{PACKAGE}.{parent}", None)
                module = ModuleType(f"{PACKAGE}.{path}")
                vars(module).update(contents)
                sys.modules[module.__name__] = module
    return importlib.import_module(f"{PACKAGE}.{name}")


def _package(name: str, path: Path | None) -> None:
    package = ModuleType(name)
    package.__path__ = [] if path is None else [str(path)]
    sys.modules[name] = package


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
