"""The site's generated parts and the examples agree with the code: a fresh probe, real runs, documented names."""

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if "# %%" in path.read_text())
sys.path.insert(0, str(ROOT / "docs" / "make"))


@pytest.fixture(scope="module")
def written():
    return json.loads((ROOT / "results" / "support.json").read_text())


@pytest.fixture(scope="module")
def probe():
    from tools import probe_support

    return probe_support


def test_the_table_names_every_family_preset_and_no_other(probe, written):
    from capaboost_core import PRESETS
    from capaboost_text.roles import FAMILIES as TEXT
    from capaboost_vision.roles import FAMILIES as VISION

    vision = {name.partition(" ")[0] for name in probe.VISION}
    assert vision == {cls.__name__ for cls in VISION}
    assert probe.TEXT.keys() == TEXT.keys()
    assert written["models"].keys() == probe.VISION.keys() | probe.TEXT.keys()
    assert written["presets"].keys() == written["block"].keys() == {*PRESETS}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(name, marks=() if name in ("SwinTransformer", "qwen3") else pytest.mark.long)
        for name in (
            "SwinTransformer",
            "qwen3",
            "VisionTransformer",
            "Hiera",
            "Beit",
            "deberta-v2",
            "gpt2",
            "modernbert",
        )
    ],
)
def test_a_fresh_probe_of_a_model_agrees(model, probe, written):
    assert probe.probe(model) == written["models"][model]


def test_what_becomes_of_trained_values_agrees(probe, written):
    for preset in ("capaboost-lora", "padapter", "prefix", "dora", "bitfit"):
        assert probe.tried(preset) == written["presets"][preset]
        assert json.loads(json.dumps(probe.in_block(preset))) == written["block"][preset]


@pytest.fixture
def registries(monkeypatch):
    """Methods and presets that are forgotten after the test."""
    from capaboost_core.methods import METHODS, PRESETS

    for registry in (METHODS, PRESETS):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name == "compare_methods")) for name in EXAMPLES]
)
def test_an_example_runs(name, tmp_path, monkeypatch, registries, capfd):
    """Its own assertions hold, and it leaves nothing behind."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert os.listdir(tmp_path) == ["temporary"]


def test_every_exported_name_is_documented():
    pytest.importorskip("peft")
    import importlib

    import api

    for package in api.PACKAGES:
        for path in api.paths(package):
            module, _, name = path.rpartition(".")
            value = getattr(importlib.import_module(module), name)
            if callable(value):
                assert (value.__doc__ or "").strip(), f"{path} has no docstring"


def test_every_method_has_a_page():
    import method_pages

    from capaboost_core import PRESETS

    listed = [preset for name in method_pages.names() for preset in method_pages.presets_of(name)]
    assert sorted(listed) == sorted(PRESETS)
