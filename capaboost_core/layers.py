"""Layers whose additions their own weight and bias can hold."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from capaboost_core.errors import UserError
from capaboost_core.sharing.tied import TiedWeight

# A frozen layer that carries a trainable addition: what LoRA and the adapters have in common.


# The containers in which nn.Module keeps a module's content.
CONTENT = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
)
LOAD_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
# What stands before the class's forward: of accelerate's hooks, of `module.compile()`, or set by hand.
BEFORE_FORWARD = ("forward", "_old_forward", "_hf_hook", "_compiled_call_impl")
# Hooks that compute a weight from other tensors before each forward pass, and the names that these have.
COMPUTING = (BasePruningMethod, WeightNorm, SpectralNorm)
ANY = None
PARTS = ("_orig", "_mask", "_g", "_v", "_u")


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds with one trained weight for each row of the layer's input.

    Attributes:
        executed: What dense kernels do.
        kept: Those with entries that masks keep.
        weight_trains: Whether the weight gets a gradient.
        input_needs_gradient: Whether what the weight meets needs one.
        per_call: Whether it is done once a call of the layer, whatever its rows, as a product of weights alone is.
    """

    executed: int
    kept: int
    weight_trains: bool
    input_needs_gradient: bool
    per_call: bool = False

    @property
    def gradients(self) -> int:
        """Products of the same size in a backward pass."""
        return self.weight_trains + self.input_needs_gradient


class Adapted(nn.Module):
    """Mixin of layers that adopt a base layer's parameters and children, so that its state-dict keys stay.

    It stands before the base's class: `class LoRALinear(Adapted, nn.Linear)`.

    Attributes:
        path: Its module path in the base model.
        mergeable: Whether its weight and bias can hold its addition; it then is a `Mergeable`.
        obstacle: What keeps it from that.
        low_rank: Whether its addition is low-rank increments of its weight; it then has `slices` and
            `factors_by_slice`, as `LoRALinear`.
        traced: Whether its cost is in a trace of the model, as more tokens for frozen layers, and not in `macs`.
        lacked: Whether the state dict that is being loaded, or was last, has nothing of any addition.
        contexts: How many `disable` contexts each thread is in, by its number; under `ANY`, for all threads.
    """

    mergeable: bool = False
    not_mergeable_because: str = "a nonlinearity"
    low_rank: ClassVar[bool] = False
    counted_in_trace: ClassVar[bool] = False

    def adopt(self, base: nn.Module, path: str) -> None:
        """Adopt everything that the base holds; called in place of its class's constructor."""
        nn.Module.__init__(self)
        left_out = vars(self).keys() | {*BEFORE_FORWARD} | {name for _, name in computing_hooks(base)}
        self.base_attributes = {name: v for name, v in vars(base).items() if name not in left_out}
        self.base_content = {name: frozenset(vars(base)[name]) for name in CONTENT}
        self.base_class = type(base)
        for name in CONTENT:
            vars(self)[name].update(vars(base)[name])
        _take_hooks(self, base)
        for name, value in self.base_attributes.items():
            setattr(self, name, value)
        self.adopted = frozenset(name for name, _ in base.named_parameters())
        self.path, self.contexts, self.lacked = path, {}, False
        self.training = base.training
        compute_weights(self)

    @property
    def disabled(self) -> bool:
        """Whether it computes as its base, as in a `disable` context of this thread."""
        return bool(self.contexts) and _concerned(self.contexts)

    @property
    def enabled(self) -> bool:
        return not self.disabled

    def plain(self) -> nn.Module:
        """The frozen layer as it was before `adopt`, with its current parameters."""
        layer = self.base_class.__new__(self.base_class)
        nn.Module.__init__(layer)
        for name, held in self.base_content.items():
            content = vars(self)[name]  # a set of names, or values by name
            kept = [key for key in content if key in held]
            vars(layer)[name].update(kept if isinstance(content, set) else {key: content[key] for key in kept})
        _take_hooks(layer, self)
        vars(layer).update(self.base_attributes)
        take_forward(layer, self)
        layer.train(self.training)
        compute_weights(layer)
        return layer

    def _replicate_for_data_parallel(self) -> Adapted:
        """The replicas of `nn.DataParallel` run in threads of their own."""
        replica = super()._replicate_for_data_parallel()
        replica.contexts = {ANY: 1} if self.disabled else {}
        return replica

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the addition, without those adopted from the base."""
        return {name: p for name, p in self.named_parameters() if name not in self.adopted}

    def own_buffers(self) -> dict[str, torch.Tensor]:
        """The buffers of the addition, such as projections from a seed, without those adopted from the base."""
        held = self.base_content["_buffers"] | self.base_content["_modules"]
        return {name: buffer for name, buffer in self.named_buffers() if name.split(".")[0] not in held}

    def tied_weights(self) -> dict[str, TiedWeight]:
        """Those of the addition by name, without those of adapted layers within this one."""
        within = tuple(f"{name}." for name, module in self.named_modules() if name and isinstance(module, Adapted))
        weights = {name: module for name, module in self.named_modules() if isinstance(module, TiedWeight)}
        return {name: weight for name, weight in weights.items() if not name.startswith(within)}

    def drawn(self) -> dict[str, np.ndarray]:
        """What is drawn from a seed by name, which no file holds: its masks."""
        return {name: tied.bits.cpu().numpy() for name, tied in self.tied_weights().items()}

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        """The products of its addition; a layer whose trained matrices are not tied weights overrides it.

        The first half of the tied weights (A, down, keys) meets the layer's input, or a frozen image of it; the second
        half (B, up, values) meets what the first half made.

        Args:
            needs_gradient: Whether the layer's input needs one.
        """
        weights = list(self.tied_weights().values())
        return macs_of([weights[: len(weights) // 2], weights[len(weights) // 2 :]], needs_gradient)


def _concerned(contexts: dict[int | None, int]) -> bool:
    """Whether this thread is in one of the contexts; so are those of autograd, which recompute, and compiled code."""
    if torch.compiler.is_compiling() or ANY in contexts or threading.get_ident() in contexts:
        return True
    return isinstance(threading.current_thread(), threading._DummyThread)


def _take_hooks(layer: nn.Module, base: nn.Module) -> None:
    """Have the hooks of another layer, in the same containers, so that the handles of those who set them still work.

    Those of loading are copied: they are bound to the layer that loads, and an adapted layer has some of its own.
    """
    vars(layer).update({name: vars(base)[name] for name in (*HOOKS, "_is_full_backward_hook")})
    for name in LOAD_HOOKS:
        hooks = ((key, _bound_anew(hook, layer)) for key, hook in vars(base)[name].items())
        vars(layer)[name] = OrderedDict(pair for pair in hooks if not hasattr(pair[1], "of_adapted"))


def _bound_anew(hook: Callable, layer: nn.Module) -> Callable:
    """torch's wrapper of a hook that is given its module, with another one."""
    return type(hook)(hook.hook, layer) if getattr(hook, "with_module", False) else hook


def take_forward(layer: nn.Module, base: nn.Module) -> None:
    """Put accelerate's hook of another layer, if it has one, around this layer's forward."""
    if (hook := vars(base).get("_hf_hook")) is not None:
        layer._hf_hook, layer._old_forward = hook, layer.forward
        around = functools.partial(vars(base)["forward"].func, layer)
        layer.forward = functools.update_wrapper(around, layer._old_forward)


def own_forward(layer: nn.Module) -> Any:
    """What stands on the instance, below a hook of accelerate, in place of its class's forward; None if nothing."""
    forward = vars(layer).get("_old_forward" if "_hf_hook" in vars(layer) else "forward")
    of_class = isinstance(forward, MethodType) and forward.__self__ is layer
    return None if of_class and forward.__func__ is type(layer).forward else forward


def computing_hooks(layer: nn.Module) -> Iterator[tuple[int, str]]:
    """The key of each hook that computes a tensor of the layer before a forward pass, and that tensor's name."""
    for key, hook in layer._forward_pre_hooks.items():
        if isinstance(hook, COMPUTING):
            yield key, getattr(hook, "_tensor_name", None) or hook.name


@torch.no_grad()
def compute_weights(layer: nn.Module) -> None:
    """Have what hooks compute as evaluation has it: it may be out of date before the first pass, or after loading."""
    training, layer.training = layer.training, False  # spectral norm iterates in training
    for key, _ in computing_hooks(layer):
        layer._forward_pre_hooks[key](layer, None)
    layer.training = training


def settle_weights(layer: nn.Module) -> None:
    """Make parameters of what hooks compute (torch's pruning, old weight norm and spectral norm), for good.

    The hooks' containers, which may be those of another layer, are replaced.
    """
    compute_weights(layer)
    if not (settled := dict(computing_hooks(layer))):
        return
    for name in settled.values():
        for parts in (layer._parameters, layer._buffers):
            for part in {f"{name}{end}" for end in PARTS} & parts.keys():
                del parts[part]
        layer.register_parameter(name, nn.Parameter(vars(layer).pop(name).detach(), requires_grad=False))
    for kind in ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
        hooks = [(key, hook, type(getattr(hook, "hook", hook)).__module__) for key, hook in vars(layer)[kind].items()]
        kept = ((key, hook) for key, hook, of in hooks if key not in settled and of != SpectralNorm.__module__)
        vars(layer)[kind] = OrderedDict(kept)


def macs_of(stages: Iterable[Iterable[TiedWeight]], needs_gradient: bool) -> list[MacCount]:
    """The products of tied weights, each stage of which meets what the one before made, the first the input.

    Args:
        stages: The weights.
        needs_gradient: Whether the input needs a gradient.
    """
    products = []
    for stage in stages:
        products += [MacCount(w.executed, w.kept, w.trains, needs_gradient) for w in stage]
        needs_gradient = needs_gradient or any(weight.trains for weight in stage)
    return products


def dropout_of(probability: float) -> nn.Module:
    return nn.Dropout(probability) if probability else nn.Identity()


def empty_like_weight(weight: torch.Tensor, *shape: int) -> torch.Tensor:
    """An empty tensor for a new parameter, on the device of a frozen weight, in float32 or in its float64."""
    dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
    return torch.empty(*shape, device=weight.device, dtype=dtype)


class MergedWeights(nn.Module):
    """A weight, and a bias where that differs too, with the addition in them; they move as a layer does, unsaved."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)


class Mergeable(Adapted):
    """An adapted layer that computes with its sums while it is merged.

    The merged weights are made once and kept beside the frozen parameters, which never change: the state dict is the
    same, merged or not. A subclass calls `allow_merging` at the end of its constructor, makes them in `merged_weight`,
    and computes with what `current_merged` gives, if that is not None.
    """

    mergeable: bool = True

    def allow_merging(self) -> None:
        self.register_module("merged_weights", None)
        self.stays_merged, self.merging = False, 0
        self.register_load_state_dict_post_hook(_merge_anew)

    def merged_weight(self) -> tuple[Tensor, Tensor | None]:
        """The weight with the addition in its precision, and the bias; None leaves the bias as it is."""
        raise NotImplementedError

    @property
    def merged(self) -> bool:
        return self.merged_weights is not None

    def current_merged(self) -> MergedWeights | None:
        """The sums while merged, read once: another thread may let go of them.

        Raises:
            UserError: In a training step while merged, which would leave the addition without gradients.
        """
        sums = self.merged_weights
        in_training = sums is not None and self.training and torch.is_grad_enabled()
        if in_training and any(parameter.requires_grad for parameter in self.own_parameters().values()):
            raise UserError(f"{self.path} is merged and cannot be trained; call unmerge(model), or model.eval()")
        return sums

    def merge(self) -> None:
        """Compute with the sums until `unmerge`."""
        self._settle(True, self.merging)

    def unmerge(self) -> None:
        """Release the sums; within `merged` contexts, at the end of the last."""
        self._settle(False, self.merging)

    def count_merging(self, change: int) -> None:
        """Count a context that needs the layer merged: 1 on entry, -1 on exit."""
        self._settle(self.stays_merged, self.merging + change)

    def _settle(self, stays_merged: bool, merging: int) -> None:
        if not (stays_merged or merging):
            self.merged_weights = None
        elif not self.merged:
            self.merged_weights = self._make_merged()
        self.stays_merged, self.merging = stays_merged, merging

    @torch.inference_mode(False)  # a tensor made there could not take part in a gradient later
    @torch.no_grad()
    def _make_merged(self) -> MergedWeights:
        compute_weights(self)
        with torch.autocast(self.weight.device.type, enabled=False):
            return MergedWeights(*self.merged_weight())

    def plain_merged(self) -> nn.Module:
        """A plain layer that holds the sums."""
        layer, sums = self.plain(), self.merged_weights or self._make_merged()
        settle_weights(layer)
        layer.weight = nn.Parameter(self.as_stored(sums.weight), self.weight.requires_grad)
        if sums.bias is not None:
            layer.bias = nn.Parameter(sums.bias, self.bias.requires_grad)
        return layer

    def as_stored(self, weight: Tensor) -> Tensor:
        """A weight as the frozen layer holds it."""
        return weight

    def __getstate__(self) -> dict[str, Any]:
        """A copy made within a context keeps the layer's state there: nothing else would end its merging."""
        return vars(self) | {"stays_merged": self.merged, "merging": 0}


def _merge_anew(layer: Mergeable, _: Any) -> None:
    """Merge again after a state dict was loaded: the old sums are out of date."""
    if layer.merged:
        layer.merged_weights = layer._make_merged()


_merge_anew.of_adapted = True
