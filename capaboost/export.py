"""A trained run in the formats of other programs, each read back and compared with the model before it counts."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from capaboost.inference import GenerationRun, ImageRun, TextRun
from capaboost_core import save_peft, unload
from capaboost_core.errors import UserError, reason_of
from capaboost_core.extras import need

Run = ImageRun | TextRun | GenerationRun
TOLERANCE = 1e-3  # of the largest logit, in single precision after other kernels or another order of sums


def export(run: Run, target: str, folder: Path) -> float:
    """Write the model into a new folder.

    Args:
        run: As `load_run` gives it; `timm`, `safetensors` and `onnx` merge what can be merged into its weights.
        target: A key of `TARGETS`.
        folder: A folder that does not exist yet, or is empty.

    Returns:
        The largest difference of a logit on one batch, over the largest logit.

    Raises:
        UserError: If the folder is in use, the method has no such form, or what was written computes something else;
            the folder is then as it was.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; give a new folder")
    example = run.example()
    before = _logits(run, run.model, *example)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        made = Path(name) / "export"
        made.mkdir()
        after = TARGETS[target](run, made, example)
        error = float((after - before).abs().max() / before.abs().max().clamp_min(1e-6))
        if not error <= TOLERANCE:
            raise UserError(
                f"the {target} file differs from the model by {error:.1e} of its logits; nothing is written"
            )
        _open_to_readers(made)
        if folder.exists():
            folder.rmdir()
        shutil.move(str(made), folder)
    return error


def _open_to_readers(folder: Path) -> None:
    """Permissions as the umask has them: safetensors 0.8 writes files that their owner alone can read."""
    usual = folder / ".usual"
    usual.touch()
    mode = usual.stat().st_mode
    usual.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def to_safetensors(run: Run, folder: Path, example: tuple[Tensor, ...]) -> Tensor:
    """`model.safetensors`: the plain model's state dict with the adapter merged, and what `_write_beside` has."""
    model = _plain(run)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
    )
    _write_beside(run, folder)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return _logits(run, model, *example)


def to_timm(run: Run, folder: Path, example: tuple[Tensor, ...]) -> Tensor:
    """A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, with transform and classes."""
    if not isinstance(run, ImageRun):
        raise UserError("--to timm is for images; type --to safetensors or --to onnx")
    import timm

    model: Any = _plain(run)
    model.pretrained_cfg = dict(
        model.pretrained_cfg,
        mean=run.mean,
        std=run.std,
        input_size=(3, *run.size),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="squash",
        num_classes=len(run.classes),
        label_names=list(run.classes),
    )
    arguments = dict(getattr(model, "_model_args", None) or {})
    timm.models.save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return _logits(run, again, *example)


def to_peft(run: Run, folder: Path, example: tuple[Tensor, ...]) -> Tensor:
    """An ordinary LoRA that `PeftModel.from_pretrained(base, FOLDER)` loads."""
    need("peft", "peft", "checks of an exported LoRA")
    from peft import PeftModel

    save_peft(run.model, folder)
    _write_beside(run, folder)
    base = unload(run.model, merge=False)
    return _logits(run, PeftModel.from_pretrained(base, str(folder)).eval(), *example)


def to_onnx(run: Run, folder: Path, example: tuple[Tensor, ...]) -> Tensor:
    """`model.onnx` for any batch size, checked in onnxruntime, and what `_write_beside` has."""
    for package in ("onnx", "onnxruntime"):
        need(package, "onnx", "exports to ONNX")
    import onnxruntime

    names = list(run.inputs)
    model, file = _Logits(_plain(run), names), folder / "model.onnx"
    axes = {name: {0: "batch"} if isinstance(run, ImageRun) else {0: "batch", 1: "tokens"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, and that a newer exporter needs another package
        torch.onnx.export(
            model, example, str(file), dynamo=False, input_names=names, output_names=["logits"],
            dynamic_axes=axes | {"logits": {0: "batch"}},
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    _write_beside(run, folder)

    def run_onnx(*inputs: Tensor) -> Tensor:
        feed = {name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["logits"], feed)[0])

    one = run_onnx(*(value[:1] for value in example))  # another batch size than it was traced with
    every = run_onnx(*example)
    if not torch.allclose(one, every[:1], rtol=TOLERANCE, atol=TOLERANCE):
        raise UserError("the ONNX file computes something else for another batch size; nothing is written")
    return every


TARGETS: dict[str, Callable[[Run, Path, tuple[Tensor, ...]], Tensor]] = {
    "onnx": to_onnx,
    "timm": to_timm,
    "peft": to_peft,
    "safetensors": to_safetensors,
}


class _Logits(nn.Module):
    """A model whose output is its logits alone, with its inputs in the order of their names."""

    def __init__(self, model: nn.Module, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.names == ["images"]:
            return self.model(*inputs)
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


@torch.inference_mode()
def _logits(run: Run, model: nn.Module, *inputs: Tensor) -> Tensor:
    return _Logits(model, list(run.inputs))(*inputs).float().cpu()


def _plain(run: Run) -> nn.Module:
    """The base model with the adapter in its weights; what cannot be merged stays as modules and is refused."""
    try:
        return unload(run.model).eval()
    except UserError as error:
        raise UserError(f"this method cannot be merged into a plain model ({reason_of(error)})") from error


def _write_beside(run: Run, folder: Path) -> None:
    """What makes inputs of images or texts, and the names of the classes."""
    if isinstance(run, ImageRun):
        form = {"size": run.size, "interpolation": "bicubic", "mean": run.mean, "std": run.std}
        (folder / "transform.json").write_text(json.dumps(form, indent=1) + "\n", encoding="utf-8")
    else:
        tokenizer = deepcopy(run.tokenizer)
        tokenizer.model_max_length = run.max_length  # where `truncation=True` cuts a text
        tokenizer.save_pretrained(folder)
    if isinstance(run, GenerationRun):  # which has no classes
        return
    (folder / "classes.json").write_text(
        json.dumps(list(run.classes), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
