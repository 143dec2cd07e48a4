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
from PIL import Image

PACKAGE = "transformers_tests"


def local_path(url: str) -> str:
    """An image on disk in place of one that the suites would download."""
    path = Path(tempfile.gettempdir()) / f"transformers-tests-{os.getuid()}.png"
    if not path.exists():
        Image.radial_gradient("L").save(path)
    return str(path)


# What the suites import and the source distribution lacks. A class that is absent tests nothing.
ABSENT = {
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation.test_utils": {
        "GenerationTesterMixin": type("GenerationTesterMixin", (), {})
    },
    f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": {}},
    # A script of transformers' own CI.
    "fetch_hub_objects_for_ci": {"url_to_local_path": local_path},
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
    (folder / "__init__.py").touch()  # the archive leaves it out, and one module reads it
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
        _add(PACKAGE, [str(folder())])
        for path, contents in ABSENT.items():
            parent = path.rpartition(".")[0]
            if not parent or not (folder() / parent.removeprefix(f"{PACKAGE}.")).is_dir():
                if parent:
                    _add(parent, [])
                vars(_add(path, None)).update(contents)
    return importlib.import_module(f"{PACKAGE}.{name}")


def _add(name: str, path: list[str] | None) -> ModuleType:
    """An empty module; a package where there is a path."""
    module = sys.modules[name] = ModuleType(name)
    if path is not None:
        module.__path__ = path
    return module


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
