"""Trainer and an accelerate loop keep an adapter, its head and masks: saved, resumed, best, loaded elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainerCallback

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")

from peft import PeftModel  # noqa: E402

from capaboost_core import load_adapter  # noqa: E402
from tests.peft_door.models import TOKENS, example  # noqa: E402
from tests.peft_door.two_processes import DOORS, ENGINES, LABELS, LOOPS, STEPS, base, optimizer_of, start  # noqa: E402

ROOT = Path(__file__).parents[2]
WEIGHTS = "adapter_model.safetensors"


class Killed(TrainerCallback):
    """Ends the process's training in the middle of the third epoch."""

    def on_step_end(self, args, state, control, **_):
        if state.epoch > 2:
            raise KeyboardInterrupt


@pytest.fixture
def arguments(place):
    (cola,) = {path.parent for path in place.rglob("train.tsv")}
    sizes = ["--epochs", "4", "--batch-size", "20", "--r", "4", "--lr", "0.01"]
    return ["--model", str(place / "encoder"), "--data", str(cola), *sizes]


def test_the_example_goes_on_after_a_kill_to_the_same_bits(arguments, tmp_path, monkeypatch, place):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    main = example("peft_trainer").main
    whole = main([*arguments, "--output", str(tmp_path / "whole")])
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "--output", str(tmp_path / "killed")], [Killed()])
    assert main([*arguments, "--output", str(tmp_path / "killed")]) == whole
    first, second = (load_file(tmp_path / name / "adapter" / WEIGHTS) for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name.rpartition(".")[2] for name in first if "lora_" in name} == {"packed"}
    assert any("classifier" in name for name in first)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "whole").glob("checkpoint-*/*.safetensors")}
    assert set(sizes) == {WEIGHTS}  # of the adapter alone
    base = AutoModelForSequenceClassification.from_pretrained(place / "encoder", num_labels=2)
    loaded = PeftModel.from_pretrained(base, tmp_path / "whole" / "adapter").state_dict()
    for name, values in first.items():
        parts = name.rpartition(".")
        here = (
            f"{parts[0]}.default.{parts[2]}"
            if "lora_" in name
            else name.replace("classifier.", "classifier.modules_to_save.default.")
        )
        assert torch.equal(loaded[here], values)


@pytest.fixture(scope="module", params=[1, 2])
def runs(request, tmp_path_factory):
    """The folder that all cells of so many processes have written to, and their engines."""
    folder, count = tmp_path_factory.mktemp("cells"), request.param
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    more = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    program = str(ROOT / "tests" / "peft_door" / "two_processes.py")
    made = subprocess.run([*command, program, str(folder)], env=os.environ | more, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    return folder, ENGINES[count]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("door", DOORS)
def test_adapter_head_and_masks_come_through(runs, door, loop):
    """Saved, resumed, the best, loaded elsewhere: of all engines it is the training of one process by hand."""
    folder, engines = runs
    for engine in engines:
        cell = folder / f"{door}-{loop}-{engine}"
        last = f"checkpoint-{STEPS}" if loop == "trainer" else ""
        adapters = {"once": cell / "once" / last, "resumed": cell / "resumed" / last, "best": cell / "best"}
        for name, place in adapters.items():
            expected = by_hand(door, steps=1 if name == "best" else STEPS)
            found = loaded(door, place / "capaboost_adapter" if (door, loop) == ("core", "trainer") else place)
            found, wanted = found(input_ids=TOKENS).logits, expected(input_ids=TOKENS).logits
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4), (engine, name)


def loaded(door: str, folder: Path) -> nn.Module:
    return (load_adapter(base(), folder) if door == "core" else PeftModel.from_pretrained(base(), folder)).eval()


def by_hand(door: str, steps: int) -> nn.Module:
    """The same steps with all rows at once."""
    model = start(door)
    optimizer = optimizer_of(model)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=LABELS).loss.backward()
        optimizer.step()
    return model
