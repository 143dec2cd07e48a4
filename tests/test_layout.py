"""The tree is the flow: stages import downward only, and each says what is in it."""

import ast
from pathlib import Path

import pytest
from support import ROOT

# A stage may import from itself, from any stage above it, and from the root's files.
STAGES = (
    "files",
    "memory",
    "hub",
    "micrographs",
    "measuring",
    "synthetic",
    "teacher",
    "students",
    "training",
    "serving",
    "evaluation",
    "viewers",
    "page",
    "commands",
    "__main__",
)
PACKAGES = [stage for stage in STAGES if (ROOT / "mvaema" / stage).is_dir()]


def imported(file: Path) -> set[str]:
    """The stages that a module imports, also inside functions."""
    return {name.split(".")[1] for name in names_imported(file) if name.startswith("mvaema.")}


def names_imported(file: Path) -> set[str]:
    """What a module imports by its full name, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= set(names)
    return found


def test_every_part_of_the_library_has_its_place_in_the_flow():
    parts = {path.stem for path in (ROOT / "mvaema").iterdir() if path.name[0] != "."}
    assert parts - {"__init__", "__pycache__"} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_imports_point_one_way(stage):
    path = ROOT / "mvaema" / stage
    below = STAGES[STAGES.index(stage) + 1 :]
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        wrong = imported(file) & set(below)
        assert not wrong, f"{file.relative_to(ROOT)} imports from {', '.join(sorted(wrong))}"


def test_the_library_does_without_the_baselines():
    for file in (ROOT / "mvaema").rglob("*.py"):
        packages = {name.partition(".")[0] for name in names_imported(file)}
        assert "baselines" not in packages, file.relative_to(ROOT)


@pytest.mark.parametrize("name", [*(f"mvaema/{name}" for name in PACKAGES), "baselines"])
def test_a_package_lists_its_modules(name):
    package = ROOT / name
    listed = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    missing = [f.name for f in package.glob("*.py") if not f.name.startswith("__")]
    assert not [module for module in missing if module not in listed]


def test_a_model_repository_stands_alone():
    """`*_mvaema.py` files travel to the Hub, where nothing else of the project is."""
    for file in ROOT.glob("*_mvaema.py"):
        assert not imported(file), file.name
