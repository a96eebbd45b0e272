"""What `pip install .` gives: a wheel that trains outside the checkout, and imports that stay small."""

import ast
import configparser
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import pytest

import capaboost
import capaboost_core
from capaboost import cli, save_adapter
from capaboost.runs.settings import shipped
from capaboost_core import UserError, extras
from capaboost_core.methods import METHODS, MODULES, PRESETS

ROOT = Path(__file__).parents[1]
PACKAGES = ("capaboost", "capaboost_core", "capaboost_vision", "capaboost_text", "capaboost_peft")
SOURCES = (*PACKAGES, "configs", "results/paper")
FILES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
# Puts an environment without some libraries before Python: they are there, but are not found.
HIDING = """
import importlib.machinery, os
hidden, find = os.environ["HIDDEN"].split(), importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in hidden else find(name, *rest)
)
"""
HIDDEN = "tensorboard tensorboardX matplotlib peft"


def tracked(folder: str) -> set[str]:
    """The files of a folder of the checkout, but for what Python leaves there."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in paths}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A folder with the wheel's content, and nothing of the checkout beside it."""
    if find_spec("pip") is None or find_spec("setuptools") is None or int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("the wheel needs pip and setuptools 77: pip install -e '.[dev]'")
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    made = subprocess.run([*build, str(source), "-w", str(place)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = place.glob("capaboost-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    (place / "site" / "sitecustomize.py").write_text(HIDING)
    return place / "site"


def run(unpacked: Path, folder: Path, *arguments: str, hidden: str = "") -> subprocess.CompletedProcess:
    """`python -m capaboost` of the wheel in a folder outside the checkout."""
    more = {"PYTHONPATH": str(unpacked), "HIDDEN": hidden, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "capaboost", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | more, capture_output=True, text=True, timeout=400)


def imported(package: str) -> set[str]:
    """The distributions that the modules of a package import at once."""
    names = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names |= {name.name for name in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module} if isinstance(node, ast.ImportFrom) and not node.level else set()
    tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {*PACKAGES}
    tops -= {"pydantic_core"}  # which a release of pydantic pins
    held_by = packages_distributions()
    return {held_by.get(top, [top])[0].lower().replace("-", "_") for top in tops}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_imports_is_required(package):
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    required = {re.split(r"[^\w-]", line)[0].lower().replace("-", "_") for text in lines for line in text.split("\n")}
    assert imported(package) <= required


def test_the_wheel_holds_every_file_of_the_packages_and_the_data(unpacked):
    inside = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    for package in PACKAGES:
        assert tracked(package) <= inside
        assert f"{package}/py.typed" in inside
    assert {f"capaboost/{name}" for name in tracked("configs")} <= inside
    assert {f"capaboost/{name}" for name in tracked("results/paper") if name.endswith(".json")} <= inside
    (points,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "capaboost = capaboost.cli:main" in points.read_text()


def test_the_image_gets_all_that_the_wheel_is_built_from():
    """Docker itself is not asked."""
    text, left_out = ((ROOT / name).read_text() for name in ("Dockerfile", ".dockerignore"))
    assert not {name.split("/")[0] for name in (*SOURCES, *FILES, "constraints.txt")} & set(left_out.split())
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    (extras_of_image,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert set(extras_of_image.split(",")) <= parser["options.extras_require"].keys()


def test_the_wheel_lists_its_commands(unpacked, tmp_path):
    out = run(unpacked, tmp_path, "--help").stdout
    assert out.startswith("usage: capaboost ")
    words = " ".join(out.split())
    assert all(f"  {name} " in out and text in words for name, (_, text) in cli.COMMANDS.items())
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--versoin"], "--version"),
        (["train_vtab", "--dataset", "dtd"], "train-vtab"),
        (["train-vtab", "--dataset", "dtd", "--epoch", "3"], "--epochs"),
        (["predict", "--jsn", "x.json"], "--json"),
    ],
)
def test_a_wrong_flag_or_command_is_one_line_that_names_the_right_one(typed, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(typed)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ([], "capaboost: error: the following arguments are required: COMMAND; type capaboost --help"),
        (
            ["export", "run", "--output", "out"],
            "capaboost export: error: the following arguments are required: --to; type capaboost export --help",
        ),
    ],
)
def test_what_is_missing_is_one_line_that_names_the_help(typed, line, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(typed)
    assert capsys.readouterr().err.splitlines() == [line]


def test_bash_completes_commands_and_their_flags(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--completion", "bash"])
    ask = 'COMP_WORDS=(capaboost {}); COMP_CWORD={}; _shtab_capaboost; echo "${{COMPREPLY[@]}}";'
    script = capsys.readouterr().out + ask.format("train-", 1) + ask.format("predict --j", 2)
    asked = subprocess.run(["bash"], input=script, capture_output=True, text=True)
    assert asked.stdout.splitlines() == [
        " ".join(name for name in cli.COMMANDS if name.startswith("train-")),
        "--json",
    ]


def test_the_wheel_trains_without_the_extras(unpacked, tmp_path):
    tiny = ["--model", "test_vit", "--set", "model.pretrained=false", "--batch-size", "100"]
    made = run(unpacked, tmp_path, "train-vtab", "--dataset", "digits", "--epochs", "1", *tiny, hidden=HIDDEN)
    assert made.returncode == 0, made.stderr
    assert "result.json" in made.stdout
    assert "tensorboard is not installed" in made.stderr
    assert "pip install tensorboard" in made.stderr
    (result,) = tmp_path.rglob("result.json")
    assert result.parent.name == "capaboost-lora-seed42"
    assert (result.parent / "metrics.jsonl").exists()


def test_a_command_without_its_extra_says_what_to_install(unpacked, tmp_path):
    made = run(unpacked, tmp_path, "plots", ".", hidden=HIDDEN)
    line = "error: plots need matplotlib, which is not installed; type pip install matplotlib\n"
    assert (made.returncode, made.stderr) == (2, line)


PAPERS = """
from capaboost.commands.flops import compare_paper
comparisons, facts = compare_paper("vit_base_patch16_224")
print(len(comparisons), facts["paper"])
"""


def test_the_wheel_holds_the_papers_tables(unpacked, tmp_path):
    command = [sys.executable, "-c", PAPERS]
    environment = os.environ | {"PYTHONPATH": str(unpacked), "HIDDEN": HIDDEN}
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.stdout.startswith("4 arXiv 2407.01320"), made.stderr


TORCH = {"torch", "numpy", "timm", "transformers", "accelerate"}
EXTRA = {"peft", "tensorflow_datasets", "matplotlib", "tensorboard", "datasets", "sklearn"}
IMPORTS = {  # what each leaves out
    "capaboost.cli": {*TORCH, "yaml", "rich"},
    "capaboost_core": TORCH,
    "capaboost_core.errors": {*TORCH, "pydantic", "yaml"},
    "capaboost.training.settings": TORCH,
    "capaboost_core.injection": {*EXTRA, "timm", "transformers", "accelerate", "torchvision", "sympy"},
    "capaboost_vision": {*EXTRA, "transformers"},
    "capaboost_text": TORCH,
    "capaboost_text.encoders": {*EXTRA, "timm"},
    "capaboost_peft": {"timm", "tensorflow_datasets", "matplotlib", "tensorboard", "sklearn"},
}


@pytest.mark.parametrize("module", IMPORTS)
def test_an_import_leaves_out_what_it_does_not_need(module):
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(made.stdout.split())
    assert module.partition(".")[0] in loaded
    assert not loaded & IMPORTS[module]


WITHOUT_TORCH = [
    *([name, flag] for name in cli.COMMANDS for flag in ("--help", "--no-such-flag")),
    ["train-vtab", "--dataset", "digits", "--method", "lroa"],
    ["train-vtab", "--dataset", "digits", "--set", "train.lrr=1"],
    ["train-glue", "--task", "cola", "--set", "model.nam=x"],
    ["train-squad", "--dataset", "squad_v1", "--set", "data.dataset=squad"],
    ["train-lm", "book.txt", "--set", "data.holdout=2"],
    ["noah", "--dataset", "digits", "--method", "lora", "--budget", "1k"],
]


def test_no_help_and_no_wrong_flag_or_setting_imports_torch():
    """One interpreter runs all and names the first that does."""
    code = """
import contextlib, io, json, sys
from capaboost import cli
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = cli.main(arguments)
        except SystemExit as stopped:
            code = stopped.code
    heavy = {"torch", "timm", "transformers", "sklearn", "scipy"} & sys.modules.keys()
    assert not heavy and code == (0 if "--help" in arguments else 2), (arguments, heavy, code)
"""
    given = json.dumps(WITHOUT_TORCH)
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=given, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def test_the_names_of_methods_and_presets_are_those_that_their_modules_register():
    for module in {module for module, _ in MODULES}:
        registered = importlib.import_module(f"capaboost_core.methods.{module}").__name__
        presets = {preset for name, names in MODULES if name == module for preset in names}
        assert {preset for preset, entry in PRESETS.items() if type(entry).__module__ == registered} == presets
    assert all(type(PRESETS[preset]) is METHODS[PRESETS[preset].method] for preset in PRESETS)
    assert METHODS.keys() == {preset.method for preset in PRESETS.values()}


def test_the_package_has_the_cores_api():
    assert save_adapter is capaboost_core.save_adapter
    assert set(capaboost_core.__all__) <= set(dir(capaboost))
    namespace = {}
    exec("from capaboost import *", namespace)
    assert namespace.keys() >= set(capaboost_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'save_adaptor'"):
        _ = capaboost.save_adaptor


def test_what_is_not_shipped_or_installed_is_one_line():
    with pytest.raises(UserError, match="the folder results/none of capaboost is missing"):
        shipped("results/none")
    with pytest.raises(UserError, match=r"plots need no_such_module.*pip install matplotlib"):
        extras.need("no_such_module", "plots", "plots")


@pytest.mark.parametrize(("arguments", "message"), [([], "COMMAND"), (["train"], "invalid choice: 'train'")])
def test_a_wrong_command_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_is_explained_under_its_own_name(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert out.startswith(f"usage: capaboost {name} ")
    if name.startswith("train-"):
        listed = out.partition("presets of --method:")[2].partition("settings of --set")[0]
        assert [preset.strip() for preset in listed.split(",")] == list(PRESETS)


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_the_tools_of_a_checkout_need_no_installation(path, tmp_path):
    """`-S` leaves out site-packages: the tool must get to its flags, or to the first library that it lacks."""
    made = subprocess.run([sys.executable, "-S", str(path), "--help"], cwd=ROOT, capture_output=True, text=True)
    assert "No module named 'capaboost" not in made.stderr
