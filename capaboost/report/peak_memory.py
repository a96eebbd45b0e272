"""Peak memory of a piece of work, and of a training step, measured where it runs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from capaboost_core.injection import trainable_parameters

MEASURED = "weights, inputs and optimizer state, and the most that torch allocates beside them in one AdamW step"


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Largest sum of bytes that `work` has allocated and not yet freed.

    On CUDA these are the caching allocator's own counts. On the CPU every allocation and release of
    torch's allocator is taken from the profiler's trace and summed up in the order of time: a resident
    set would count pages that the C library keeps from other work. Scratch space inside oneDNN and MKL
    is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler greets on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    return max(accumulate(_allocations(profiler)), default=0)


def step_peak_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes that torch holds at the peak of the second AdamW step: weights, state, gradients, activations.

    The first step is not measured: it makes the optimizer's state.

    Args:
        model: An adapted model on its device.
        inputs: Keyword arguments of its forward, on the same device.
    """
    optimizer = torch.optim.AdamW(trainable_parameters(model.train()).values())

    def step() -> None:
        output = model(**inputs)
        getattr(output, "logits", output).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    held = _storage_bytes([*model.parameters(), *model.buffers(), *inputs.values(), *state])
    return held + peak_bytes(step, next(model.parameters()).device)


def _storage_bytes(tensors: list[Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _allocations(profiler: profile) -> list[int]:
    """Bytes of the trace's memory events in the order of time, below 0 for a release."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(changes, key=lambda event: event["ts"])]
