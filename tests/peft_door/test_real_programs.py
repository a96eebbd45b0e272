"""Programs with peft and `import capaboost_peft` alone: killed, gone on, best epoch, hub layout, loaded elsewhere."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")

from tests.peft_door.models import example
from tests.real_data import real_data

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
MODELS = "CAPABOOST_MODELS"
VIT = "vit_small_patch14_dinov2.saliency.safetensors"
ALONE = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
ELSEWHERE = """
import sys, torch, capaboost_peft
from peft import PeftModel
model = PeftModel.from_pretrained({base}, "me/adapter").eval()
assert not [name for name in sys.modules if name.startswith(("capaboost_text", "capaboost_vision", "tests"))]
inputs = torch.load(sys.argv[1])
with torch.no_grad():
    made = [model(**part).logits if isinstance(part, dict) else model(part) for part in inputs]
torch.save(torch.cat(made), sys.argv[2])
"""


def real_model(name: str) -> Path:
    """A file or folder below that which CAPABOOST_MODELS names, by default ../shared/models; skips if it is absent."""
    path = Path(os.environ.get(MODELS) or ROOT.parent / "shared" / "models").resolve() / name
    if not path.exists():
        pytest.skip(f"{path} does not exist; set {MODELS} to the folder of pretrained models")
    return path


def killed_when(command: list[str], appears: Path) -> None:
    """Kill a program as soon as it has written a file, the last of its first checkpoint."""
    process = subprocess.Popen(command, env=os.environ | ALONE | {"PYTHONPATH": str(ROOT)}, cwd=ROOT)
    while not appears.exists() and process.poll() is None:
        time.sleep(0.1)
    assert process.poll() is None, f"it ended before {appears} was there"
    process.send_signal(signal.SIGKILL)
    process.wait()


def loaded_elsewhere(adapter: Path, base: str, inputs: list, folder: Path) -> Tensor:
    """The logits of a process that has the adapter from a hub's cache, by its name there."""
    place = folder / "hub" / "models--me--adapter"
    shutil.copytree(adapter, place / "snapshots" / "0")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0")
    torch.save(inputs, folder / "inputs.pt")
    command = [sys.executable, "-c", ELSEWHERE.format(base=base), str(folder / "inputs.pt"), str(folder / "found.pt")]
    more = ALONE | {"HF_HUB_CACHE": str(folder / "hub"), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=os.environ | more, cwd=folder)
    return torch.load(folder / "found.pt")


class Logits(TrainerCallback):
    """Those of the best model, as the program has it when training ends."""

    def __init__(self, inputs: list):
        self.inputs, self.made = inputs, None

    def on_train_end(self, args, state, control, model, **_):
        self.made, self.steps = logits(model, self.inputs), state.global_step


@torch.no_grad()
def logits(model: nn.Module, inputs: list) -> Tensor:
    model.eval()
    return torch.cat([model(**part).logits for part in inputs])


def test_trainer_on_cola_with_minilm(tmp_path, monkeypatch):
    source, minilm = real_data("glue", "CoLA"), real_model("all-MiniLM-L6-v2")
    for name, most in (("train.tsv", 400), ("dev.tsv", 100)):
        lines = (source / name).read_text(encoding="utf-8").splitlines()
        (tmp_path / name).write_text("\n".join(lines[:most]) + "\n", encoding="utf-8")
    arguments = ["--model", str(minilm), "--data", str(tmp_path), "--epochs", "3", "--lr", "0.002"]
    arguments += ["--output", str(tmp_path / "run")]
    killed_when(
        [sys.executable, "examples/peft_trainer.py", *arguments],
        tmp_path / "run" / "checkpoint-13" / "trainer_state.json",
    )
    assert not (tmp_path / "run" / "adapter").exists()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    sentences = [line.split("\t")[3] for line in (tmp_path / "dev.tsv").read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    inputs = [dict(tokenizer(sentences[i : i + 20], padding=True, return_tensors="pt")) for i in range(0, 100, 20)]
    expected = Logits(inputs)
    score = example("peft_trainer").main(arguments, [expected])
    assert expected.steps == 39
    base = (
        f'__import__("transformers").AutoModelForSequenceClassification.from_pretrained({str(minilm)!r}, num_labels=2)'
    )
    found = loaded_elsewhere(tmp_path / "run" / "adapter", base, inputs, tmp_path)
    assert torch.equal(found, expected.made)
    plain = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2)
    assert (logits(plain, inputs) - found).abs().max() > 0.1
    size = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size
    print(f"Matthews' correlation {score:.3f} on 100 rows, adapter of {size / 1e6:.2f} MB")


def test_an_accelerate_loop_with_vit_small(tmp_path):
    images, weights = real_data("vtab-1k", "oxford_flowers102"), real_model(VIT)
    command = [sys.executable, "-W", "ignore", "tests/peft_door/vit_program.py"]
    command += [str(tmp_path / "run"), str(images), str(weights)]
    killed_when(command, tmp_path / "run" / "checkpoints" / "checkpoint_0" / "custom_checkpoint_0.pkl")
    again = subprocess.run(
        command, env=os.environ | ALONE | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.startswith("epoch 1 ")  # it went on
    print(again.stdout)
    from tests.peft_door import vit_program

    x, _ = vit_program.rows(images, "val200", vit_program.TRAIN)
    sizes = f"img_size={vit_program.SIZE}, num_classes={vit_program.CLASSES}, dynamic_img_size=False"
    file = f"pretrained_cfg_overlay=dict(file={str(weights)!r}, num_classes=0)"
    base = f'__import__("timm").create_model("vit_small_patch14_dinov2", pretrained=True, {file}, {sizes})'
    found = loaded_elsewhere(tmp_path / "run" / "best", base, list(x.split(vit_program.BATCH)), tmp_path)
    assert torch.equal(found, torch.load(tmp_path / "run" / "logits.pt"))
