"""What an adapted model trains or changes of its base: all that saves an adapter takes its tensors from here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capaboost_core.injection import Injection, adapted_layers, injection_of, own_parameters, trainable_parameters
from capaboost_core.layers import Adapted
from capaboost_core.liveness import moving, statistics
from capaboost_core.plan import in_prefix
from capaboost_core.wrappers import named_parameters, strip_wrappers, unwrap


@dataclass(frozen=True)
class Account:
    """Tensors by their names in the bare model.

    Attributes:
        planned: The additions, the head, and what the method trains of the base, even while they are frozen.
        further: Other parameters that train, and the running statistics that training changes or has changed.
    """

    planned: dict[str, nn.Parameter]
    further: dict[str, Tensor]

    @property
    def everything(self) -> dict[str, Tensor]:
        return self.planned | self.further


def account_of(model: nn.Module) -> Account:
    """What an adapted model, perhaps in a wrapper, trains or has changed.

    Raises:
        UserError: If the model has no adapter.
    """
    model = unwrap(model)
    injection = injection_of(model)
    planned, other = parts(model, injection, adapted_layers(model))
    trained = {name: parameter for name, parameter in other.items() if parameter.requires_grad}
    return Account(planned, trained | moving(model) | _moved(model, injection))


def changing(model: nn.Module) -> dict[str, Tensor]:
    """What a training step may change in any model: trainable parameters, and their modules' running statistics."""
    return trainable_parameters(model) | moving(unwrap(model))


def parts(
    model: nn.Module, injection: Injection, layers: list[Adapted]
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The parameters that the plan trains, by name, and all others.

    Args:
        model: An adapted model or its base.
        injection: The record of what is or will be adapted.
        layers: The adapted layers, even if the model does not hold them yet.
    """
    added = own_parameters(layers)
    own = {name: p for name, p in named_parameters(model).items() if name not in added}
    trains, head = injection.config.trains, injection.plan.head
    planned = {name: p for name, p in own.items() if trains(name) or any(in_prefix(name, prefix) for prefix in head)}
    return added | planned, {name: p for name, p in own.items() if name not in planned}


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a state dict holds, under the names that they have in the bare model."""
    return {
        strip_wrappers(f"{path}.{name}" if path else name): buffer
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def _moved(model: nn.Module, injection: Injection) -> dict[str, Tensor]:
    """Statistics of frozen modules that have changed, as SyncBatchNorm in place of a fixed norm changes them."""
    return {name: now for name, now in statistics(model).items() if _differs(now, injection.statistics.get(name))}


def _differs(now: Tensor, before: Tensor | None) -> bool:
    return before is not None and not (before.is_meta or torch.equal(now, before.to(now.device, now.dtype)))
