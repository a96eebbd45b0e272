"""AdaLoRA's schedule of ranks (Zhang et al., 2023), by peft's allocator and driven by the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from capaboost_core.methods.from_peft.method import ADAPTER, FromPeft, PeftLayer
from capaboost_core.plan import Target
from capaboost_core.settings import refuse

WEIGHTS = ("lora_A", "lora_B", "lora_E")


class AdaLoRA(FromPeft):
    """Ranks that start at `init_r` and end at r on average, wherever they matter most."""

    init_r: int | None = Field(
        default=None,
        ge=2,
        le=65536,
        examples=["12"],
        json_schema_extra={"null": "1.5 r"},
        description="Rank of each layer at the start, above r, the mean rank at the end.",
    )
    initial_share: float = Field(default=0.13, ge=0, lt=1, description="Share of the steps before the ranks fall.")
    final_share: float = Field(default=0.48, ge=0, lt=1, description="Share of the steps after they have fallen.")
    interval: int = Field(default=10, ge=1, description="Steps from one allocation of ranks to the next.")
    orthogonality: float = Field(
        default=0.1, ge=0, description="Weight of the penalty on factors that are not orthogonal."
    )
    beta1: float = Field(default=0.85, gt=0, lt=1, description="Of the running mean of importance.")
    beta2: float = Field(default=0.85, gt=0, lt=1, description="Of the running mean of its uncertainty.")

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.init_r is None:
            self.derive("init_r", self.r + -(-self.r // 2))
        if (self.init_r or 0) <= self.r:
            refuse("init_r", self.init_r, f"ranks fall from it to r, which is {self.r}; type {2 * self.r}")
        if self.initial_share + self.final_share >= 1:
            refuse("final_share", self.final_share, f"with initial_share it must stay below 1; try {1 / 3:.2f}")
        return self

    def peft_layers(self, stand_ins: Mapping[Target, nn.Module]) -> dict[Target, nn.Module]:
        made: dict[Target, Any] = super().peft_layers(stand_ins)
        for layer in made.values():
            layer.ranknum.requires_grad_(False)  # a constant, which peft lets train where it moves it to a device
        return made

    def penalty(self, model: nn.Module) -> Tensor | None:
        """The mean over all factors of ||A A^T - I|| and ||B^T B - I||, as in Eq. 4 but without the squares."""
        factors = [layer.peft.lora_A[ADAPTER] for layer in _layers(model).values()]
        factors += [layer.peft.lora_B[ADAPTER].T for layer in _layers(model).values()]
        norms = [torch.linalg.norm(f @ f.T - torch.eye(len(f), device=f.device, dtype=f.dtype)) for f in factors]
        return self.orthogonality * torch.stack(norms).mean()

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Until the last phase: measure importance, and at intervals zero the least important values of E."""
        layers, fall_ends = _layers(model), steps - int(self.final_share * steps)
        if step > fall_ends:
            for layer in layers.values():
                layer.peft.lora_E[ADAPTER].masked_fill_(~_memory(layer)["kept"], 0.0)
        elif step > 1 or step < fall_ends:  # else nothing has been measured
            self._allocate(model, layers, step, steps, fall_ends)

    def _allocate(self, model: nn.Module, layers: dict[str, PeftLayer], step: int, steps: int, fall_ends: int) -> None:
        from peft.tuners.adalora.layer import RankAllocator

        schedule = SimpleNamespace(
            target_r=self.r,
            tinit=int(self.initial_share * steps),
            tfinal=steps - fall_ends,
            total_step=steps,
            deltaT=self.interval,
            beta1=self.beta1,
            beta2=self.beta2,
        )
        allocator = RankAllocator(model, schedule, ADAPTER)
        memories = {
            f"{path}.peft.{weight}.{ADAPTER}": (_memory(layer), weight)
            for path, layer in layers.items()
            for weight in WEIGHTS
        }
        allocator.ipt = dict.fromkeys(memories)
        allocator.exp_avg_ipt = {name: memory["importance"][weight] for name, (memory, weight) in memories.items()}
        allocator.exp_avg_unc = {name: memory["uncertainty"][weight] for name, (memory, weight) in memories.items()}
        _, kept = allocator.update_and_allocate(model, step, force_mask=step == fall_ends)
        for name, (memory, weight) in memories.items():
            memory["importance"][weight] = allocator.exp_avg_ipt[name]
            memory["uncertainty"][weight] = allocator.exp_avg_unc[name]
            if kept and name in kept:
                memory["kept"] = torch.tensor(kept[name], device=memory["kept"].device).view(-1, 1)

    def state(self, model: nn.Module) -> dict[str, Any]:
        return {path: _memory(layer) for path, layer in _layers(model).items()}

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        for path, layer in _layers(model).items():
            layer.memory = _moved(state[path], layer.weight.device)


def _layers(model: nn.Module) -> dict[str, PeftLayer]:
    return {path: module for path, module in model.named_modules() if isinstance(module, PeftLayer)}


def _memory(layer: PeftLayer) -> dict[str, Any]:
    """Importance and uncertainty of each entry, and which values of E are kept, (init_r, 1)."""
    if not hasattr(layer, "memory"):
        weights = {name: getattr(layer.peft, name)[ADAPTER].detach() for name in WEIGHTS}
        layer.memory = {
            "kept": torch.ones_like(weights["lora_E"], dtype=torch.bool),
            "importance": {name: torch.zeros_like(weight) for name, weight in weights.items()},
            "uncertainty": {name: torch.zeros_like(weight) for name, weight in weights.items()},
        }
    return layer.memory


def _moved(values: Any, device: torch.device) -> Any:
    """Copies of nested tensors on a device."""
    if isinstance(values, Tensor):
        return values.to(device, copy=True)
    return {name: _moved(value, device) for name, value in values.items()}
