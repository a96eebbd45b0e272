"""Peak memory of a training step, measured where it runs."""

from __future__ import annotations

import json
import os
import tempfile
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from capaboost_core.inject import trainable_parameters

MEASURED = {
    "cuda": "torch.cuda.max_memory_allocated over one AdamW step",
    "cpu": "what is held before one AdamW step and the highest sum of torch's allocations in it, by the profiler; "
    "what math libraries allocate for themselves is not seen",
}


def step_peak_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes that torch holds at the peak of the second AdamW step: weights, state, gradients, activations.

    The first step is not measured: it makes the optimizer's state.

    Args:
        model: An adapted model on its device.
        inputs: Keyword arguments of its forward, on the same device.
    """
    optimizer = torch.optim.AdamW(trainable_parameters(model).values())
    _step(model.train(), inputs, optimizer)
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        _step(model, inputs, optimizer)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler greets on stderr
    before = _resident_bytes(model, inputs, optimizer)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _step(model, inputs, optimizer)
    return before + _highest_sum(profiler)


def _step(model: nn.Module, inputs: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    output = model(**inputs)
    getattr(output, "logits", output).float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _resident_bytes(model: nn.Module, inputs: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    state = [value for values in optimizer.state.values() for value in values.values()]
    tensors = [*model.parameters(), *model.buffers(), *inputs.values(), *state]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _highest_sum(profiler: profile) -> int:
    """The highest running sum of the trace's memory events, each of which is an allocation or its end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(accumulate(size for _, size in memory), default=0)
