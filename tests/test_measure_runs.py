"""Forgetting and errors of runs: an adapter that adds nothing forgets nothing; shares are counted by hand."""

import json
from pathlib import Path

import pytest
import timm
import torch

from capaboost_core import UserError, save_adapter
from capaboost_core.adapter_files.record import write_inference
from capaboost_vision import inject
from capaboost_vision.backbone import EMBEDDED
from tests.toy_result import RESULT
from tools import measure_runs

CLASSES = 4
STATISTICS = {"mean": [0.5] * 3, "std": [0.5] * 3}


def save_run(folder: Path, preset: str, is_trained: bool) -> Path:
    """A run's folder on shapes_joint at 32 px, without the training."""
    torch.manual_seed(0)
    base = timm.create_model(EMBEDDED, pretrained=True, img_size=32, num_classes=CLASSES)
    model = inject(base, preset)
    for name, parameter in model.named_parameters():
        if is_trained and parameter.requires_grad and "head" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, folder / "adapter")
    made = {"name": EMBEDDED, "pretrained": True, "weights": None, "drop_path_rate": 0.0, "img_size": 32, "kwargs": {}}
    transform = {"size": [32, 32], "interpolation": "bicubic", **STATISTICS}
    names = list(map(str, range(CLASSES)))
    write_inference(folder / "adapter", {"kind": "images", "model": made, "classes": names, "transform": transform})
    result = RESULT | {"wall_seconds": 1.0, "config": {"data": {"dataset": "shapes_joint"}}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize("preset", ["lora", "capaboost-lora", "capaboost-padapter"])
def test_with_its_own_head_the_backbone_is_the_pretrained_one_until_something_is_trained(preset, tmp_path):
    pretrained, images = timm.create_model(EMBEDDED, pretrained=True).eval(), torch.randn(2, 3, 64, 64)
    for is_trained in (False, True):
        model = measure_runs.with_own_head(save_run(tmp_path / f"seed{is_trained:d}", preset, is_trained)).eval()
        assert torch.equal(model(images), pretrained(images)) != is_trained


def test_shares_by_hand(monkeypatch):
    labels = torch.tensor([0, 0, 0, 0])
    sure, unsure, wrong = [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]
    outputs = {
        Path("one"): torch.tensor([sure, wrong, wrong, unsure]),  # 2 of 4 right
        Path("two"): torch.tensor([wrong, sure, wrong, wrong]),  # 1 of 4; the mean is right on the first two
    }
    monkeypatch.setattr(measure_runs, "probabilities", lambda folder: (outputs[folder], labels))
    both_wrong, gain = measure_runs.compared(Path("one"), Path("two"))
    assert both_wrong == pytest.approx(100 * 1 / 4)  # the third of four that one of them gets wrong
    assert gain == pytest.approx(0.0)


def test_two_methods_on_the_test_rows(tmp_path, monkeypatch):
    rows = (torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.arange(6) % CLASSES)
    monkeypatch.setattr(measure_runs, "_test_rows", lambda task, size: rows)
    for method in ("lora", "capaboost-lora"):
        for seed in (42, 43):
            save_run(tmp_path / "sweep" / "shapes_joint" / method / f"seed{seed}", method, is_trained=True)
    found = measure_runs.measure([tmp_path / "sweep"], "lora", None, seeds=2)
    assert [(row.method, row.seed, row.beside) for row in found] == [
        ("capaboost-lora", 42, "lora"), ("capaboost-lora", 43, "lora"),
        ("lora", 42, "lora, another seed"), ("lora", 43, "lora, another seed"),
    ]  # fmt: skip
    assert all(row.forgetting is None and 0 <= row.both_wrong <= 100 for row in found)
    with pytest.raises(UserError, match="dora has no run on shapes_joint"):
        measure_runs.measure([tmp_path / "sweep"], "dora", None, seeds=2)


def test_no_sweep_is_one_line(tmp_path, capsys):
    flags = [str(tmp_path / "nowhere"), "--beside", "lora", "--output", str(tmp_path / "out.json")]
    assert measure_runs.main(flags) == 2
    assert "nowhere; give what `capaboost sweep` wrote" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
