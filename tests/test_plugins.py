"""Methods of other packages: by an entry point, and by `--plugin` in commands and workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import capaboost_vision
from capaboost_core import disable, load_adapter, merged, save_adapter, unload
from capaboost_core.errors import UserError
from capaboost_core.methods import METHODS, PRESETS, resolve_config
from capaboost_core.methods.method import announce, load_plugins

ROOT = Path(__file__).parents[1]


@pytest.fixture
def registry():
    """After the test what it registered is gone."""
    before = [(table, set(table)) for table in (METHODS, PRESETS)]
    yield
    for table, names in before:
        for name in set(table) - names:
            del table[name]
    sys.modules.pop("own_method", None)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The example as an installed package with an entry point."""
    (tmp_path / "own_method.py").write_text((ROOT / "examples" / "own_method.py").read_text())
    facts = tmp_path / "gains-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: gains\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[capaboost.methods]\ngains = own_method\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_entry_point_makes_a_method_known(registry, package, tmp_path):
    load_plugins()
    assert "own_method" not in sys.modules
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, capaboost="gains").eval()
    assert resolve_config("gains").start == 0
    x = torch.randn(2, 3, 160, 160)
    base = timm.create_model("test_vit", num_classes=3)
    base.load_state_dict(unload(model, merge=False).state_dict())
    model = capaboost_vision.inject(base, {"method": "gains"}).eval()
    with torch.no_grad():
        start = model(x)
        for name, parameter in model.named_parameters():
            if name.endswith("gain"):
                parameter.copy_(torch.linspace(-0.5, 0.5, len(parameter)))
        trained = model(x)
        with disable(model):
            torch.testing.assert_close(model(x), start)
        with merged(model):
            torch.testing.assert_close(model(x), trained, atol=1e-5, rtol=1e-5)
    assert (trained - start).abs().max() > 0.01
    save_adapter(model, tmp_path / "adapter")
    plain = timm.create_model("test_vit", num_classes=3)
    plain.load_state_dict(unload(model, merge=False).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(load_adapter(plain, tmp_path / "adapter").eval()(x), trained)


def test_an_entry_point_that_registers_nothing_is_one_line(registry):
    announce("tests.commands", ["absent"])
    with pytest.raises(UserError, match=r"tests\.commands was to register absent, but does not"):
        PRESETS["absent"]


def test_a_module_that_cannot_be_imported_is_one_line(monkeypatch):
    monkeypatch.setenv("CAPABOOST_PLUGINS", "no_such_plugin")
    with pytest.raises(UserError, match="plugin no_such_plugin cannot be imported"):
        load_plugins()


SWEEP = """
command: train-vtab
tasks: [digits]
methods: [gains, lora]
seeds: [1, 2]
set:
  model.name: test_vit
  model.pretrained: false
  train.epochs: 1
"""


@pytest.mark.long
def test_a_plugin_trains_by_every_command(tmp_path):
    (tmp_path / "own_method.py").write_text((ROOT / "examples" / "own_method.py").read_text())
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    plain = ["--set", "model.pretrained=false", "--epochs", "1"]
    commands = {
        "run": ["train-vtab", "--dataset", "digits", "--model", "test_vit", *plain, "--method", "gains"],
        "compare": ["compare", "--dataset", "digits", "--model", "test_vit", *plain, "--methods", "gains,lora"],
        "sweep": ["sweep", "sweep.yaml", "--workers", "2"],
    }
    for name, command in commands.items():
        line = [sys.executable, "-m", "capaboost", "--plugin", "own_method", *command, "--output-dir", name]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    methods = [json.loads(file.read_text())["method"] for file in tmp_path.rglob("result.json")]
    assert methods.count("gains") == 4
