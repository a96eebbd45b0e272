"""Forgetting and errors of runs: an adapter that adds nothing forgets nothing; shares are counted by hand."""

import json
from pathlib import Path

import pytest
import timm
import torch

from capaboost import load_run
from capaboost_core import UserError, save_adapter
from capaboost_core.adapter_files.record import write_inference
from capaboost_vision import inject
from capaboost_vision.backbone import EMBEDDED
from tests.toy_result import RESULT
from tools import measure_runs

CLASSES = 4
STATISTICS = {"mean": [0.5] * 3, "std": [0.5] * 3}


def save_run(folder: Path, preset: str, is_trained: bool = True) -> Path:
    """A run's folder on shapes_joint at 32 px, without the training; another one for each name of a folder."""
    torch.manual_seed(sum(map(ord, folder.name)))
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


def test_what_is_trained_is_in_the_backbone_with_its_own_head(tmp_path):
    folder = save_run(tmp_path / "seed42", "capaboost-lora")
    there, here = load_run(folder).model.state_dict(), measure_runs.with_own_head(folder).state_dict()
    names = [name for name in there if not name.startswith(("head.", "pos_embed"))]
    assert any(name.endswith(".packed") for name in names)
    for name in names:
        assert torch.equal(there[name], here[name]), name
    pretrained = timm.create_model(EMBEDDED, pretrained=True).state_dict()
    assert torch.equal(here["head.weight"], pretrained["head.weight"])


def test_shares_by_hand(monkeypatch):
    labels = torch.tensor([0, 0, 0, 0, 0])
    sure, unsure, wrong = [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]
    outputs = {
        Path("one"): torch.tensor([sure, wrong, wrong, unsure, sure]),  # 3 of 5 right
        Path("two"): torch.tensor([wrong, sure, wrong, sure, sure]),  # 3 of 5; the mean is right on all but the third
    }
    monkeypatch.setattr(measure_runs, "probabilities", lambda folder: (outputs[folder], labels))
    both_wrong, gain = measure_runs.compared(Path("one"), Path("two"))
    assert both_wrong == pytest.approx(100 * 1 / 3)  # the third, of three that one of them gets wrong
    assert gain == pytest.approx(100 * 1 / 5)


def test_a_run_is_held_beside_the_next_seed(tmp_path):
    seeds = {"lora": ("42", "43", "100"), "capaboost-lora": ("43", "42", "7")}
    for method, of in seeds.items():
        for seed in of:
            save_run(tmp_path / "sweep" / "shapes_joint" / method / f"seed{seed}", method)
    found = measure_runs.pairs([tmp_path / "sweep"], "lora", seeds=9)
    assert [(method, seed, run.name, other.parent.name, other.name) for _, method, seed, run, other in found] == [
        ("capaboost-lora", 42, "seed42", "lora", "seed43"), ("capaboost-lora", 43, "seed43", "lora", "seed100"),
        ("lora", 42, "seed42", "lora", "seed43"), ("lora", 43, "seed43", "lora", "seed100"),
        ("lora", 100, "seed100", "lora", "seed42"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="two sweeps have capaboost-lora on shapes_joint; give one of them"):
        list(measure_runs.pairs([tmp_path / "sweep", tmp_path / "sweep" / ".." / "sweep"], "lora", seeds=9))
    with pytest.raises(UserError, match="dora has 0 runs on shapes_joint, of two that it takes"):
        list(measure_runs.pairs([tmp_path / "sweep"], "dora", seeds=2))


def test_two_methods_on_the_test_rows(tmp_path, monkeypatch):
    rows = (torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.arange(6) % CLASSES)
    own = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8), torch.arange(9)
    monkeypatch.setattr(measure_runs, "_test_rows", lambda task, size: rows)
    monkeypatch.setattr(measure_runs, "image_files", lambda folder: [folder, folder])
    monkeypatch.setattr(measure_runs, "load_split", lambda files, cache: own)
    for seed, is_trained in (("42", True), ("43", False)):
        save_run(tmp_path / "sweep" / "shapes_joint" / "lora" / f"seed{seed}", "lora", is_trained)
    found = measure_runs.measure([tmp_path / "sweep"], "lora", tmp_path, seeds=2)
    assert [(row.method, row.seed, row.beside) for row in found] == [("lora", 42, "lora"), ("lora", 43, "lora")]
    assert found[0].both_wrong == found[1].both_wrong  # the same two runs
    assert found[1].forgetting == 0  # nothing trained, nothing forgotten
    right = measure_runs.top1(timm.create_model(EMBEDDED, pretrained=True), *own, torch.device("cpu"))
    after = measure_runs.top1(
        measure_runs.with_own_head(tmp_path / "sweep/shapes_joint/lora/seed42"), *own, torch.device("cpu")
    )
    assert found[0].forgetting == pytest.approx(100 * (right - after))


def test_no_sweep_is_one_line(tmp_path, capsys):
    flags = [str(tmp_path / "nowhere"), "--beside", "lora", "--output", str(tmp_path / "out.json")]
    assert measure_runs.main(flags) == 2
    assert "nowhere; give what `capaboost sweep` wrote" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
