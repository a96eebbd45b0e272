"""The accelerator of a run, and one optimizer step on one global batch, which processes and slices share.

Processes take a slice of the batch each, and gradient accumulation splits that further; each slice is
weighted by its length.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, parse_flag_from_env
from torch import Tensor, nn

from capaboost.training import sharded
from capaboost.training.processes import check_engine, check_launch, link_on_cpus
from capaboost.training.run_folder import tracker
from capaboost.training.settings import TrainSection
from capaboost_core.errors import UserError
from capaboost_core.injection import weight_decay_groups
from capaboost_core.task import Hooks
from capaboost_core.wrappers import named_parameters

LAUNCHER = "ACCELERATE_MIXED_PRECISION"  # `accelerate launch` sets it to `no` by default
NATIVE = ("amx_bf16", "avx512_bf16")


def choose_precision(setting: str) -> str:
    """What `auto` means here; any other setting is itself.

    bf16 or fp16 where the launcher's flags say so; else bf16 where the device multiplies it natively; else `no`: an
    emulated bfloat16 is many times slower than float32.
    """
    if setting != "auto":
        return setting
    of_launcher = os.environ.get(LAUNCHER, "no")
    if of_launcher != "no":
        return of_launcher
    # The first state is the one that the accelerator takes over: it links the processes, on CPUs if the flag says so.
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    assert device is not None
    return "bf16" if has_native_bf16(device) else "no"


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16: NVIDIA's from Ampere on, AMX, AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions of torch
    return any(capabilities.get(name, False) for name in NATIVE)


def described(precision: str, device: torch.device) -> str:
    """One line for the log."""
    if precision != "no":
        return f"precision: {precision} products, float32 weights"
    native = has_native_bf16(device)
    return "precision: float32" + ("" if native else f"; this {device.type} has no native bf16")


def copied(values: Any) -> Any:
    """Nested values with copies of the tensors."""
    if isinstance(values, Tensor):
        return values.detach().clone()
    if isinstance(values, dict):
        return {name: copied(value) for name, value in values.items()}
    return [copied(value) for value in values] if isinstance(values, list) else values


def make_accelerator(settings: TrainSection, folder: Path) -> Accelerator:
    """An accelerator with the run's precision and tracker; nothing is written yet.

    Raises:
        UserError: If the device cannot do the precision, or the processes do not form one run.
    """
    check_engine()
    link_on_cpus()
    # The plugin, not the plain argument: `accelerate launch` overrides that from the environment.
    plugin = GradientAccumulationPlugin(num_steps=settings.gradient_accumulation_steps, sync_with_dataloader=False)
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    precision = choose_precision(settings.mixed_precision)
    if sharded.is_asked():
        sharded.check_asked(precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # of a run before in this process, as in a sweep; else accelerate refuses
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_plugin=plugin,
            log_with=None if tracker() == "none" else tracker(),
            project_dir=str(folder),
            kwargs_handlers=[parallel],
        )
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"train.mixed_precision: {reason}; pass --mixed-precision no or bf16") from error
    check_launch(accelerator)
    if sharded.is_asked() and accelerator.num_processes > 1:
        sharded.take_up(accelerator)
    return accelerator


def split_batch(batch: Sequence[Any], process: int, processes: int, slices: int) -> Iterator[tuple[Any, float]]:
    """A process's slices of a global batch, each with its share of the batch.

    A batch shorter than processes * slices leaves some empty; these get its first example at weight
    0, since every process must take part in every step.
    """
    parts, size = processes * slices, len(batch)
    for part in range(process * slices, (process + 1) * slices):
        start, stop = size * part // parts, size * (part + 1) // parts
        yield (batch[start:stop], (stop - start) / size) if stop > start else (batch[:1], 0.0)


class Stepper:
    """AdamW with the run's schedule over accelerate, for the given parameters of a model by name.

    Attributes:
        model: The model as accelerate prepared it, to be called by the loss.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        settings: TrainSection,
        steps: int,
        hooks: Hooks,
    ):
        self.accelerator, self.settings, self.hooks = accelerator, settings, hooks
        self.steps = settings.epochs * steps
        self.schedule = settings.schedule_of(self.steps)
        optimizer = _adamw(parameters, settings, accelerator.device, hooks)
        # accelerate casts within a model's forward, but not of one that it shards.
        self.autocast = accelerator.autocast if accelerator.is_fsdp2 else contextlib.nullcontext
        if accelerator.is_fsdp2:
            self.model, self.optimizer = sharded.prepare(accelerator, model, optimizer, hooks.method)
        else:
            with warnings.catch_warnings():  # of torch, which would keep the older name of what is asked for
                warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
                self.model, self.optimizer = accelerator.prepare(model, optimizer)
        now = named_parameters(model)  # sharding replaces parameters
        self.parameters = [now[name] for name in parameters]

    @property
    def lr(self) -> float:
        """The run's learning rate in the last step, before any factor of the method."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group.get("lr_factor", 1.0)

    def step(self, index: int, batch: Any, loss_of: Callable[[nn.Module, Any], Tensor]) -> Tensor:
        """Take step `index` of the run; returns this process's part of the batch's mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(index) * group.get("lr_factor", 1.0)
        processes, slices = self.accelerator.num_processes, self.settings.gradient_accumulation_steps
        total = torch.zeros((), device=self.accelerator.device)
        for part, weight in split_batch(batch, self.accelerator.process_index, processes, slices):
            with self.accelerator.accumulate(self.model):
                last = self.accelerator.sync_gradients
                with self.autocast():
                    loss = self.hooks.objective(loss_of, self.model, part) * weight
                penalty = self.hooks.penalty() if last else None  # once a step
                if penalty is not None:
                    loss = loss + penalty / processes
                # accelerate divides by the slices, and DDP by the processes; the weights did both already.
                self.accelerator.backward(loss * (processes * slices))
                if last and self.settings.max_grad_norm:
                    self.accelerator.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
                self.optimizer.step()
                if last:
                    self.hooks.after_step(index + 1, self.steps)
                self.optimizer.zero_grad()
            total += loss.detach()
        return total

    def state_dict(self) -> dict[str, Any]:
        """The complete state, also of a sharded optimizer: then all processes must ask for it together."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": sharded.complete(self.optimizer.state_dict()),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        sharded.load_optimizer(self.optimizer, state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _adamw(
    parameters: Mapping[str, nn.Parameter], settings: TrainSection, device: torch.device, hooks: Hooks
) -> torch.optim.AdamW:
    if settings.head_lr is not None and not any(map(hooks.is_head, parameters)):
        raise UserError(f"train.head_lr is {settings.head_lr:g}, and this run trains no head; type null")
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_factor.setdefault(_lr_factor(name, settings, hooks), []).append(parameter)
    groups = [
        group | ({} if factor == 1.0 else {"lr_factor": factor})
        for factor, of_factor in by_factor.items()
        for group in weight_decay_groups(of_factor, settings.weight_decay, settings.decay_biases)
    ]
    return torch.optim.AdamW(groups, settings.lr, fused=device.type in ("cuda", "cpu", "mps", "xpu"))


def _lr_factor(name: str, settings: TrainSection, hooks: Hooks) -> float:
    """A parameter's rate in units of the run's rate."""
    of_head = settings.head_lr / settings.lr if settings.head_lr is not None and hooks.is_head(name) else 1.0
    return hooks.lr_factor(name) * of_head
