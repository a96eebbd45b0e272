"""The rooms of the house: the core knows no framework, vision and text do not know each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "capaboost_core": {"timm", "torchvision", "transformers", "datasets", "capaboost_vision", "capaboost_text"},
    "capaboost_vision": {"transformers", "capaboost_text"},
    "capaboost_text": {"timm", "torchvision", "capaboost_vision"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_stay_in_their_room(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path


@pytest.mark.parametrize("room", ["glue", "squad"])
def test_text_outside_a_room_does_not_know_its_task(room):
    """What GLUE and SQuAD share lies above both."""
    package = ROOT / "capaboost_text"
    files = [path for path in package.rglob("*.py") if package / room not in path.parents]
    assert files
    for path in files:
        assert f"capaboost_text.{room}" not in path.read_text(), path
