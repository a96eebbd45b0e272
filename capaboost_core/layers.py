"""A frozen layer that carries a trainable addition, what all methods have in common, and how it is merged."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from capaboost_core.errors import UserError
from capaboost_core.sharing.tied import TiedWeight

# nn.Module keeps a module's content in these private dicts and sets. An adapted layer copies them from its base, since
# torch has no public way to give one module the parameters, buffers, children and hooks of another under equal names.
CONTENT = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
)
LOAD_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
# Attributes of an instance that run in place of its class's forward: accelerate's, `module.compile()`'s, or a user's.
BEFORE_FORWARD = ("forward", "_old_forward", "_hf_hook", "_compiled_call_impl")
# What pruning, weight norm and spectral norm add to the name of a tensor for those that they compute it from.
COMPUTED_FROM = ("_orig", "_mask", "_g", "_v", "_u")
ALL_THREADS = None  # a key of `Adapted.contexts`


Filler = Callable[[Tensor], Any]  # fills a tensor in place


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds with one trained weight for each row of the layer's input.

    Attributes:
        executed: Multiply-adds of dense kernels.
        kept: Multiply-adds with the entries that masks keep.
        weight_trains: Whether the weight gets a gradient.
        input_needs_gradient: Whether the other factor needs a gradient.
        per_call: Whether they are done once a call of the layer, however many rows it has, as in a product of weights.
    """

    executed: int
    kept: int
    weight_trains: bool
    input_needs_gradient: bool
    per_call: bool = False

    @property
    def gradients(self) -> int:
        """The number of products of the same size in a backward pass."""
        return self.weight_trains + self.input_needs_gradient


class Adapted(nn.Module):
    """Mixin of layers that adopt a base layer's parameters and children, so that its state-dict keys stay.

    It is listed before the class of the base: `class LoRALinear(Adapted, nn.Linear)`.

    Attributes:
        path: Its module path in the base model.
        mergeable: Whether its weight and bias can hold its addition; it then is a `Mergeable`.
        not_mergeable_because: What the addition has that prevents merging.
        low_rank: Whether its addition is low-rank increments of its weight; it then is a `LowRankLayer`.
        counted_in_trace: Whether a trace of the model counts its cost, as more tokens for frozen layers, so that
            `macs` does not.
        lacked: Whether the state dict that is loaded, or was loaded last, holds no parameter of any addition.
        contexts: The number of `disable` contexts of each thread by its identifier; those under `ALL_THREADS` hold
            for every thread.
        adopted: Names of the parameters that it took from its base.
    """

    mergeable: bool = False
    not_mergeable_because: str = "a nonlinearity"
    low_rank: bool = False
    counted_in_trace: ClassVar[bool] = False
    path: str
    lacked: bool
    contexts: dict[int | None, int]
    adopted: frozenset[str]
    base_class: type[nn.Module]
    base_attributes: dict[str, Any]
    base_content: dict[str, frozenset[str]]

    def adopt(self, base: nn.Module, path: str) -> None:
        """Adopt everything that the base holds; a subclass calls it instead of the constructor of the base's class."""
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
        """Whether it computes as its base because this thread is in a `disable` context."""
        return bool(self.contexts) and _holds_here(self.contexts)

    @property
    def enabled(self) -> bool:
        return not self.disabled

    def plain(self) -> nn.Module:
        """The frozen layer as it was before `adopt`, with its current parameters."""
        layer = self.base_class.__new__(self.base_class)
        nn.Module.__init__(layer)
        for name, of_base in self.base_content.items():
            content = vars(self)[name]  # a set of names, or values by name
            names = [key for key in content if key in of_base]
            vars(layer)[name].update(names if isinstance(content, set) else {key: content[key] for key in names})
        _take_hooks(layer, self)
        vars(layer).update(self.base_attributes)
        take_forward(layer, self)
        layer.train(self.training)
        compute_weights(layer)
        return layer

    def release(self) -> None:
        """Drop what it holds of its base, to wait outside the model; it cannot run until `hold`."""
        for name, of_base in self.base_content.items():
            content = vars(self)[name]
            for key in of_base & content if isinstance(content, set) else of_base & content.keys():
                content.remove(key) if isinstance(content, set) else content.pop(key)

    def hold(self, base: nn.Module) -> None:
        """Hold a base again after `release`: the layer that it adopted, or what `plain` makes of that."""
        self.release()
        self.train(base.training)  # its own children; the base's have their modes
        for name, of_base in self.base_content.items():
            own, content = vars(self)[name], vars(base)[name]
            if isinstance(own, set):
                own |= of_base & content
            else:
                vars(self)[name] = type(own)({key: content[key] for key in content if key in of_base} | own)
        for name in ("_hf_hook", "_old_forward", "forward"):
            vars(self).pop(name, None)
        take_forward(self, base)
        compute_weights(self)

    def _replicate_for_data_parallel(self) -> Adapted:
        """A replica of `nn.DataParallel`, which another thread runs."""
        replica = super()._replicate_for_data_parallel()
        assert isinstance(replica, Adapted)
        replica.contexts = {ALL_THREADS: 1} if self.disabled else {}
        return replica

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the addition, without those adopted from the base."""
        return {name: p for name, p in self.named_parameters() if name not in self.adopted}

    def own_buffers(self) -> dict[str, torch.Tensor]:
        """The buffers of the addition, such as projections from a seed, without those adopted from the base."""
        of_base = self.base_content["_buffers"] | self.base_content["_modules"]
        return {name: buffer for name, buffer in self.named_buffers() if name.split(".")[0] not in of_base}

    def tied_weights(self) -> dict[str, TiedWeight]:
        """The tied weights of the addition by name, without those of adapted layers within this one."""
        within = tuple(f"{name}." for name, module in self.named_modules() if name and isinstance(module, Adapted))
        weights = {name: module for name, module in self.named_modules() if isinstance(module, TiedWeight)}
        return {name: weight for name, weight in weights.items() if not name.startswith(within)}

    def drawn(self) -> dict[str, np.ndarray]:
        """The masks by name, and all else that is drawn from a seed and that no file holds."""
        return {name: tied.bits.cpu().numpy() for name, tied in self.tied_weights().items()}

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        """Multiply-adds of its addition; a layer whose trained matrices are not tied weights overrides it.

        The first half of the tied weights (A, down, keys) multiplies the layer's input, or a frozen image of it; the
        second half (B, up, values) multiplies the result.

        Args:
            needs_gradient: Whether the layer's input needs a gradient.
        """
        weights = list(self.tied_weights().values())
        return macs_of([weights[: len(weights) // 2], weights[len(weights) // 2 :]], needs_gradient)


class LowRankLayer(Protocol):
    """What an adapted layer with `low_rank` has: increments of slices of its weight, each a product of two factors."""

    path: str
    out_features: int
    slices: Sequence[tuple[int, int]]
    fan_in_fan_out: bool

    def factors_by_slice(self) -> list[tuple[Tensor, Tensor]]: ...


def _holds_here(contexts: dict[int | None, int]) -> bool:
    """Whether one of the contexts holds for this thread; each does in autograd's threads and in compiled code."""
    if torch.compiler.is_compiling() or ALL_THREADS in contexts or threading.get_ident() in contexts:
        return True
    return isinstance(threading.current_thread(), threading._DummyThread)  # autograd's, which recompute checkpoints


def _take_hooks(layer: nn.Module, base: nn.Module) -> None:
    """Share the hooks of another layer, in the same containers, so that the handles of those hooks still remove them.

    Hooks of loading are copied, since they are bound to the layer that loads and an adapted layer has some itself.
    """
    vars(layer).update({name: vars(base)[name] for name in (*HOOKS, "_is_full_backward_hook")})
    for name in LOAD_HOOKS:
        hooks = ((key, _bound_anew(hook, layer)) for key, hook in vars(base)[name].items())
        vars(layer)[name] = OrderedDict(pair for pair in hooks if pair[1] is not _merge_anew)


def _bound_anew(hook: Any, layer: nn.Module) -> Any:
    """A hook of loading, bound to another layer if torch's wrapper passes it its module."""
    return type(hook)(hook.hook, layer) if getattr(hook, "with_module", False) else hook


def take_forward(layer: nn.Module, base: nn.Module) -> None:
    """Put accelerate's hook of another layer, if it has one, around this layer's forward."""
    if (hook := vars(base).get("_hf_hook")) is not None:
        around = functools.partial(vars(base)["forward"].func, layer)
        forward = functools.update_wrapper(around, layer.forward)
        vars(layer).update(_hf_hook=hook, _old_forward=layer.forward, forward=forward)


def own_forward(layer: nn.Module) -> Any:
    """The forward that an instance has in place of its class's, apart from a hook of accelerate; None without one."""
    forward = vars(layer).get("_old_forward" if "_hf_hook" in vars(layer) else "forward")
    if isinstance(forward, MethodType) and forward.__self__ is layer and forward.__func__ is type(layer).forward:
        return None
    return forward


def computing_hooks(layer: nn.Module) -> Iterator[tuple[int, str]]:
    """The key of each hook that computes a tensor of the layer before a forward pass, and that tensor's name."""
    for key, hook in layer._forward_pre_hooks.items():
        if isinstance(hook, BasePruningMethod):
            yield key, hook._tensor_name
        elif isinstance(hook, (WeightNorm, SpectralNorm)):
            yield key, hook.name


@torch.no_grad()
def compute_weights(layer: nn.Module) -> None:
    """Run the hooks that compute weights, as in evaluation, for before the first pass and after loading."""
    training, layer.training = layer.training, False  # spectral norm iterates in training
    for key, _ in computing_hooks(layer):
        layer._forward_pre_hooks[key](layer, ())
    layer.training = training


def settle_weights(layer: nn.Module) -> None:
    """Replace the hooks of torch's pruning, old weight norm and spectral norm by parameters with what they compute.

    The containers of the hooks are replaced, as they may be shared with another layer.
    """
    compute_weights(layer)
    if not (settled := dict(computing_hooks(layer))):
        return
    for name in settled.values():
        for parts in (layer._parameters, layer._buffers):
            for part in {f"{name}{end}" for end in COMPUTED_FROM} & parts.keys():
                del parts[part]
        layer.register_parameter(name, nn.Parameter(vars(layer).pop(name).detach(), requires_grad=False))
    for kind in ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
        hooks = [(key, hook, type(getattr(hook, "hook", hook)).__module__) for key, hook in vars(layer)[kind].items()]
        remaining = ((key, hook) for key, hook, of in hooks if key not in settled and of != SpectralNorm.__module__)
        vars(layer)[kind] = OrderedDict(remaining)


def macs_of(stages: Iterable[Iterable[TiedWeight]], needs_gradient: bool) -> list[MacCount]:
    """Multiply-adds of tied weights in stages: the first multiplies the input, each later one the result before it.

    Args:
        stages: The weights.
        needs_gradient: Whether the input needs a gradient.
    """
    counts: list[MacCount] = []
    for stage in stages:
        counts += [MacCount(w.executed, w.kept, w.trains, needs_gradient) for w in stage]
        needs_gradient = needs_gradient or any(weight.trains for weight in stage)
    return counts


def dropout_of(probability: float) -> nn.Module:
    return nn.Dropout(probability) if probability else nn.Identity()


def empty_like_weight(weight: torch.Tensor, *shape: int) -> torch.Tensor:
    """An empty tensor for a new parameter, on the device of a frozen weight, in float32 or float64 like the weight."""
    dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
    return torch.empty(*shape, device=weight.device, dtype=dtype)


class MergedWeights(nn.Module):
    """A weight with the addition in it, and a bias if the addition changes it, as buffers that are not saved."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)


class Mergeable(Adapted):
    """An adapted layer that can compute with merged weights.

    The merged weights are made once and stored beside the frozen parameters, which never change: the state dict is the
    same, merged or not. A subclass calls `allow_merging` at the end of its constructor, returns them from
    `merged_weight`, and computes with what `current_merged` returns, unless that is None.
    """

    mergeable: bool = True
    weight: nn.Parameter
    bias: nn.Parameter | None
    merged_weights: MergedWeights | None
    stays_merged: bool
    merging: int

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
        """The merged weights, or None; read once, as another thread may unmerge meanwhile.

        Raises:
            UserError: In a training step while merged, which would leave the addition without gradients.
        """
        merged = self.merged_weights
        in_training = merged is not None and self.training and torch.is_grad_enabled()
        if in_training and any(parameter.requires_grad for parameter in self.own_parameters().values()):
            raise UserError(f"{self.path} is merged and cannot be trained; call unmerge(model), or model.eval()")
        return merged

    def merge(self) -> None:
        """Compute with merged weights until `unmerge`."""
        self._update(True, self.merging)

    def unmerge(self) -> None:
        """Drop the merged weights; within `merged` contexts, at the end of the last one."""
        self._update(False, self.merging)

    def count_merging(self, change: int) -> None:
        """Count a context that needs the layer merged: 1 on entry, -1 on exit."""
        self._update(self.stays_merged, self.merging + change)

    def _update(self, stays_merged: bool, merging: int) -> None:
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
        """A plain layer that holds the merged weights."""
        layer, merged = self.plain(), self.merged_weights or self._make_merged()
        settle_weights(layer)
        layer.weight = nn.Parameter(self.as_stored(merged.weight), self.weight.requires_grad)
        if merged.bias is not None:
            assert self.bias is not None, "merging changes a bias, and never adds one"
            layer.bias = nn.Parameter(merged.bias, self.bias.requires_grad)
        return layer

    def as_stored(self, weight: Tensor) -> Tensor:
        """A weight (out, in) in the layout of the frozen layer."""
        return weight

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy: one made within a `merged` context stays merged, as no context would end for it."""
        return vars(self) | {"stays_merged": self.merged, "merging": 0}


def _merge_anew(layer: nn.Module, _: Any) -> None:
    """Merge again after a state dict was loaded, which the merged weights do not follow."""
    if isinstance(layer, Mergeable) and layer.merged:
        layer.merged_weights = layer._make_merged()
