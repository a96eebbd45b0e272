"""The storeys: the core knows no framework, vision and text do not know each other, the harness knows all."""

import ast
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import FrameType

import pytest
import timm
import torch

import capaboost_vision  # noqa: F401  registers the argument `capaboost`
from capaboost.commands import train_vtab
from capaboost_core.methods import METHODS, PRESETS

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"timm", "torchvision", "transformers", "datasets", "accelerate", "fvcore"}
FORBIDDEN = {
    "capaboost_core": {*FRAMEWORKS, "capaboost_vision", "capaboost_text"},
    "capaboost_vision": {"transformers", "capaboost_text"},
    "capaboost_text": {"timm", "torchvision", "capaboost_vision"},
    "capaboost_peft": {"timm", "torchvision", "capaboost_vision", "capaboost_text"},
    "capaboost": set(),
}
ABOVE = {"capaboost", "capaboost_peft", "tools", "benchmarks", "tests"}  # of the three rooms
NAMES = {*METHODS, *PRESETS}
MOST_FILES, MOST_FILES_OF_A_RUN = 12, 46


def name_of(path: Path) -> str:
    """The module of a file: capaboost_core/files.py -> capaboost_core.files."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module, or name of a module, that the source imports anywhere, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


class WithoutTypes(ast.NodeTransformer):
    """Drops what only a type checker imports."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if is_for_types(node) else self.generic_visit(node)


def graph() -> dict[str, set[str]]:
    """The modules of the packages, each with those of them that it imports, for types or in functions too.

    What a package's own `__init__` announces for its users is left out: those names are imported when they are used.
    """
    arrows = {}
    for name, path in FILES.items():
        tree = ast.parse(path.read_text())
        found = set(imported(WithoutTypes().visit(tree) if name in FORBIDDEN else tree))
        modules = {module if module in FILES else module.rpartition(".")[0] for module in found}
        arrows[name] = modules & FILES.keys()
    return arrows


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_stay_in_their_room(package):
    files = [path for name, path in FILES.items() if name.partition(".")[0] == package]
    assert files
    forbidden = FORBIDDEN[package] | (ABOVE - {package})
    for path in files:
        assert not {name.partition(".")[0] for name in imported(ast.parse(path.read_text()))} & forbidden, path


def test_no_import_leads_back_to_its_module():
    TopologicalSorter(graph()).prepare()  # raises CycleError with the circle


def compared_names(path: Path) -> Iterator[int]:
    """The lines that compare something with the name of a method or preset, or compare a `.method`."""
    for node in ast.walk(ast.parse(path.read_text())):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        sides += [node.value] if isinstance(node, ast.MatchValue) else []
        for side in sides:
            parts = side.elts if isinstance(side, (ast.Tuple, ast.List, ast.Set)) else [side]
            if any(isinstance(part, ast.Constant) and part.value in NAMES for part in parts):
                yield side.lineno
            if isinstance(side, ast.Attribute) and side.attr == "method":
                yield side.lineno


def test_a_comparison_with_a_methods_name_is_found(tmp_path):
    texts = ['m == "lora"', 'm in ("padapter", x)', "config.method != other", "match m:\n  case 'prefix': pass"]
    for text in [*texts, 'm == "other"', 'print("lora")', "method in known"]:
        (tmp_path / "module.py").write_text(text)
        assert bool(list(compared_names(tmp_path / "module.py"))) == (text in texts), text


def test_no_module_outside_methods_compares_a_methods_name():
    others = [path for folder in ("tools", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    own = [path for name, path in FILES.items() if not name.startswith("capaboost_core.methods")]
    found = [f"{path.relative_to(ROOT)}:{line}" for path in [*own, *others] for line in compared_names(path)]
    assert not found


@pytest.mark.parametrize("room", ["glue", "squad", "lm"])
def test_text_outside_a_room_does_not_know_its_task(room):
    """What GLUE and SQuAD share lies above both."""
    package = ROOT / "capaboost_text"
    files = [path for path in package.rglob("*.py") if package / room not in path.parents]
    assert files
    for path in files:
        assert f"capaboost_text.{room}" not in path.read_text(), path


def test_tests_share_through_helpers_and_not_through_each_other():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        parts = {part for name in imported(ast.parse(path.read_text())) for part in name.split(".")}
        assert not [part for part in parts if part.startswith("test_")], path


def files_entered(call: Callable[[], object]) -> set[str]:
    """The files of the packages in which a call runs a function, in this thread."""
    entered = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            entered.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {str(path.relative_to(ROOT)) for path in FILES.values() if str(path) in entered}


def test_an_adapted_model_takes_few_files():
    """What somebody reads who wants to know what happens; it was 22 files."""

    def run() -> None:
        timm.create_model("vit_tiny_patch16_224", capaboost="capaboost-lora", depth=1)(torch.zeros(1, 3, 224, 224))

    run()  # importing a module is not reading it
    entered = files_entered(run)
    assert "capaboost_core/methods/lora_layer.py" in entered
    assert len(entered) <= MOST_FILES, sorted(entered)


def test_a_training_run_takes_few_files(tmp_path):
    """It was 74 files."""
    flags = ["--dataset", "digits", "--epochs", "1", "--set", "model.img_size=32", "--output-dir"]

    def run(folder: str) -> None:
        assert train_vtab.main([*flags, str(tmp_path / folder)]) == 0

    run("first")
    # Where transformers is imported, as by other tests, its layers are among those that a class is looked up in.
    entered = {name for name in files_entered(lambda: run("second")) if not name.startswith("capaboost_text")}
    assert "capaboost/training/loop.py" in entered
    assert len(entered) <= MOST_FILES_OF_A_RUN, sorted(entered)
