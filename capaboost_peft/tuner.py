"""peft's LoRA with shared weights instead of its factors: the tuner, and the layers that it makes.

peft's layers read `lora_A[adapter].weight` and `lora_B[adapter].weight`, or call these modules. Here they are of class
`Factor`, whose `weight` is the d masked copies one after another: merging, batches of several adapters, quantized
bases and experts work as they do with LoRA, at rank d r.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners import lora
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils import register_peft_method
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capaboost_core.adapter_files.peft import PREFIX
from capaboost_core.errors import UserError
from capaboost_core.liveness import close_fast_paths
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.lora_layer import low_rank_linear, precision
from capaboost_core.plan import SETTABLE_FLAGS
from capaboost_core.sharing.masks import checksum, mask_bits
from capaboost_core.sharing.tied import MaskedCopyCache, TiedWeight
from capaboost_core.wrappers import is_sharded
from capaboost_peft.config import CapaBoostConfig, peft_type, rows_of
from capaboost_peft.quantized import check_merge, is_quantized, rounding_class, stated

Rows = tuple[tuple[int, int], ...]
SHARDED = "a process holds only a part of the weights"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Factor(TiedWeight):
    """One factor of an increment for peft's layers: a module with a `weight`, whose parameter is `packed`.

    Its entries, their order and their masks are those of `LoRALinear.lora_A` and `lora_B`.

    Args:
        method: Gives num_tied and the kind of mask.
        masks: All d masks as `mask_bits` gives them, in the layout of `TiedWeight`.
        plain: peft's factor of rank r, a linear layer or a convolution, which gives the kernel's size and stride.
        initial: Its values in the layout of the masks.
        initialise: Fills `packed` again after the meta device.
        rows: The (start, stop) ranges of the layer's output that have increments.
        dense: Makes the factor of rank d r, (out, in), from the masked copies.
    """

    bias = None  # as in peft's factors

    def __init__(
        self,
        method: LoRA,
        masks: np.ndarray,
        plain: Any,
        initial: Tensor,
        initialise: Callable[[Tensor], Any],
        rows: Rows,
        dense: Callable[[Tensor], Tensor],
    ):
        super().__init__(method, masks, initial, initialise)
        self.packed.requires_grad_(plain.weight.requires_grad)
        self.rows, self.dense = rows, dense
        self.inner = plain.weight.shape[2:]  # of a convolution's kernel
        self.convolution = (plain.stride, plain.padding, plain.dilation) if self.inner else ()
        self.train(plain.training)

    @property
    def rank(self) -> int:
        """s d r, with s slices of a fused layer."""
        return len(self.rows) * self.num_tied * self.bits.shape[-2]

    @property
    def weight(self) -> Tensor:
        """The factor of rank d r as evaluation sees it."""
        return self._shaped(self.copies(training=False))

    def forward(self, x: Tensor) -> Tensor:
        weight = self._shaped(self.copies())
        if not self.inner:
            return F.linear(x, weight)
        return getattr(F, f"conv{len(self.inner)}d")(x, weight, None, *self.convolution)

    def _shaped(self, copies: Tensor) -> Tensor:
        dense = self.dense(copies)
        return dense.view(len(dense), -1, *self.inner) if self.inner else dense


def stacked(copies: Tensor) -> Tensor:
    """A of all slices or experts, (slices * d * r, in)."""
    return copies.flatten(0, -2)


def side_by_side(copies: Tensor, rows: Rows, width: int) -> Tensor:
    """B (width, slices * d * r), block by block for the slices, from the copies of B^T (d, r, widths)."""
    transposed = copies.flatten(0, 1)
    if rows == ((0, width),):
        return transposed.T
    b = transposed.new_zeros(width, len(rows) * len(transposed))
    parts = transposed.split([stop - start for start, stop in rows], dim=1)
    for index, ((start, stop), part) in enumerate(zip(rows, parts, strict=True)):
        b[start:stop, index * len(part) : (index + 1) * len(part)] = part.T
    return b


class Linear(lora.Linear):
    """peft's layer, which with one active adapter computes as `LoRALinear`, in one step of autograd."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter = None if args or kwargs else self._single(x)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base, dropout = cast(nn.Linear, self.base_layer), self.lora_dropout[adapter]
        a, b = factors_of(self, adapter)
        weight = base.weight.T if self.fan_in_fan_out else base.weight
        drops = self.training and isinstance(dropout, nn.Dropout)
        dtype = precision(x)
        factors = a.copies(dtype=dtype).flatten(0, 2), b.copies(dtype=dtype).flatten(0, 1)
        dropped = dropout(x) if drops else None
        return low_rank_linear(x, weight, base.bias, a.rows, *factors, self.scaling[adapter], dropped)

    def _single(self, x: Tensor) -> str | None:
        """The active adapter, if it is the only one and neither the layer nor its base needs peft's forward."""
        here = [name for name in self.active_adapters if name in self.lora_A]
        base = cast(nn.Linear, self.base_layer)
        if len(here) != 1 or self.disable_adapters or self.merged or not isinstance(self.lora_A[here[0]], Factor):
            return None
        plain = type(base) in (nn.Linear, Conv1D) and type(base.weight) is nn.Parameter and "forward" not in vars(base)
        hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks
        same = base.weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)
        return here[0] if plain and not hooked and same and isinstance(self.scaling[here[0]], float) else None


class CapaBoostModel(LoraModel):
    """`peft.LoraModel` whose factors are shared weights; see `CapaBoostConfig`."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As peft's; then compare the masks with those of a file, and make the copies of all layers together.

        Raises:
            UserError: If a target cannot carry the adapter (before the model is changed), or if masks differ.
        """
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = list(layers_with(model, adapter_name))
        expected = getattr(self.peft_config[adapter_name], "expected_checksum", None)
        if expected not in (None, mask_checksum(model, adapter_name)):
            raise UserError(
                f"the masks of adapter {adapter_name} differ from those that it was trained with: the modules have "
                "other paths or sizes here; load it into its base model (to train again, set mask_checksum to None)"
            )
        close_fast_paths(model, [name for name, _ in layers])
        MaskedCopyCache(model, [factor for _, layer in layers for factor in factors_of(layer, adapter_name)])

    def _prepare_model(self, peft_config: CapaBoostConfig, model: nn.Module) -> None:
        """peft calls this before it changes the model: refuse targets that cannot carry the adapter."""
        super()._prepare_model(peft_config, model)
        modules = dict(model.named_modules())
        for key in peft_config.slices or {}:
            if not any(get_pattern_key([key], path) == key for path in modules):
                raise UserError(f"slices: the model has no layer {key!r}; type the end of a path, such as attn.qkv")
        for path, module in modules.items():
            if self._check_target_module_exists(peft_config, path):
                _check_target(path, module, modules.get(path.rpartition(".")[0]))

    @staticmethod
    def _create_new_module(lora_config: CapaBoostConfig, adapter_name: str, target: nn.Module, **kwargs: Any):
        module = LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        if type(module) is lora.Linear:  # not a class for quantized weights
            module.__class__ = Linear
        elif is_quantized(module):
            module.__class__ = rounding_class(type(module))
        return module

    def _check_merge_allowed(self) -> None:
        """peft calls this before it merges."""
        super()._check_merge_allowed()
        if any(map(is_sharded, self.model.parameters())):
            raise UserError(f"{SHARDED}; load the saved adapter in one process and merge it there")
        check_merge(self.model.named_modules())

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As peft's, with a warning of the rounding error of quantized weights.

        Raises:
            UserError: If a layer's weights cannot be merged into (before the model is changed).
        """
        with stated(self.model.modules()):
            super().merge_adapter(*args, **kwargs)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        with stated(self.model.modules()):
            return cast(nn.Module, super()._unload_and_optionally_merge(*args, **kwargs))

    def _create_and_replace(
        self,
        lora_config: CapaBoostConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        super()._create_and_replace(lora_config, adapter_name, target, target_name, parent, current_key, **kwargs)
        for flag in SETTABLE_FLAGS:  # without them some of timm's models do not call the layer
            if getattr(parent, flag, None) is False:
                setattr(parent, flag, True)
        # A further adapter of a parameter is in the existing wrapper, and not in a new one below the parent.
        made = [*getattr(parent, target_name).named_modules(), *target.named_modules()]
        for name, layer in made:
            is_new = isinstance(layer, LoraLayer) and adapter_name in layer.lora_A
            if is_new and not isinstance(layer.lora_A[adapter_name], Factor):
                path = ".".join([current_key, *(part for part in name.split(".") if part not in ("", "base_layer"))])
                self._share(layer, adapter_name, lora_config, path)

    def _share(self, layer: LoraLayer, adapter: str, config: CapaBoostConfig, path: str) -> None:
        """Replace a layer's factors by shared weights with their values."""
        method = config.method(layer.r[adapter], layer.lora_alpha[adapter])
        a, b = (cast(Any, factors[adapter]) for factors in (layer.lora_A, layer.lora_B))
        rows = rows_in(config, path, b.weight.shape[0], self.model)
        layer.lora_A[adapter] = factor_a(method, path, a, rows, getattr(layer, "num_experts", 1))
        layer.lora_B[adapter] = factor_b(method, path, b, rows)
        layer.scaling[adapter] = method.scale
        layer.use_rslora[adapter] = False  # the scale includes it
        layer.lora_alpha[adapter] = method.scale * layer.r[adapter]  # from which peft computes the scale again

    @classmethod
    def _get_adapter_state_dict(cls, model: nn.Module, config: CapaBoostConfig, adapter_name: str, *args, **kwargs):
        """What peft saves; the settings that it saves afterwards get the masks' checksum.

        Raises:
            UserError: If the adapter's weights are no longer shared, or a process holds only a part of them.
        """
        check_shared(model, adapter_name)
        config.mask_checksum = mask_checksum(model, adapter_name)
        state = super()._get_adapter_state_dict(model, config, adapter_name, *args, **kwargs)
        if any(map(is_sharded, state.values())):
            raise UserError(f"{SHARDED}; call save_pretrained(folder, state_dict=accelerator.get_state_dict(model))")
        return state

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a sum of adapters has no shared weight.

        Raises:
            UserError: Always.
        """
        raise UserError("a weighted sum of adapters has no shared weight; write each with save_lora and add those")


def layers_with(model: nn.Module, adapter: str) -> Iterator[tuple[str, LoraLayer]]:
    """The layers that carry an adapter, by their names in the given model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and isinstance(dict(module.lora_A.items()).get(adapter), Factor):
            yield name, module


def check_shared(model: nn.Module, adapter: str) -> None:
    """Refuse an adapter whose factors are plain ones, as they are after preparation for hot-swapping.

    Raises:
        UserError: If they are.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and adapter in module.lora_A]
    if not all(isinstance(layer.lora_A[adapter], Factor) for layer in layers):
        raise UserError(f"the weights of adapter {adapter} are no longer shared; save it before the model is prepared")


def base_path(name: str) -> str:
    """A name in a `PeftModel` as the base model has it."""
    return ".".join(part for part in name.removeprefix(PREFIX).split(".") if part != "base_layer")


def factors_of(layer: LoraLayer, adapter: str) -> tuple[Factor, Factor]:
    return cast(Factor, layer.lora_A[adapter]), cast(Factor, layer.lora_B[adapter])


def mask_checksum(model: nn.Module, adapter: str) -> str:
    """SHA-256 of an adapter's masks, as `capaboost_core` computes it."""
    return checksum(
        (
            f"{base_path(name)}{getattr(layer, 'parameter_name', '')}.lora_{letter}",
            (factor.off_device or {"bits": factor.bits})["bits"].cpu().numpy(),
        )
        for name, layer in layers_with(model, adapter)
        for letter, factor in zip("AB", factors_of(layer, adapter), strict=True)
    )


def _check_target(path: str, module: nn.Module, parent: nn.Module | None) -> None:
    layer: nn.Module = module.get_base_layer() if isinstance(module, LoraLayer) else module
    if isinstance(layer, nn.Embedding):
        raise UserError(f"target {path} is an embedding, which has no shared weight; drop it from target_modules")
    if isinstance(layer, CONVOLUTIONS) and layer.groups > 1:
        raise UserError(f"target {path} is a grouped convolution, which cannot share a weight; drop it")
    if isinstance(parent, nn.MultiheadAttention):
        raise UserError(f"target {path}: nn.MultiheadAttention never calls it; target the attention itself")


def rows_in(config: CapaBoostConfig, path: str, width: int, model: nn.Module) -> Rows:
    slices = config.slices or {}
    key = get_pattern_key(list(slices), path)
    return rows_of(slices[key], width, getattr(model, "config", None), path) if key in slices else ((0, width),)


def factor_a(method: LoRA, path: str, plain: Any, rows: Rows, experts: int = 1) -> Factor:
    """A (slices, r, in), or (experts, r, in)."""
    values = plain.weight.detach().flatten(1)
    masks = [mask_bits(method, path, f"A.{i}", tuple(values.shape)) for i in range(len(rows))]
    masks = np.stack(masks).reshape(len(rows) * experts, -1, values.shape[1])
    bound = 1 / math.sqrt(values.shape[1])
    fill = partial(nn.init.uniform_, a=-bound, b=bound)
    initial = torch.stack([values, *(torch.empty_like(values) for _ in rows[1:])])
    for other in initial[1:]:
        fill(other)
    return Factor(method, masks, plain, initial.view(masks.shape), fill, rows, stacked)


def factor_b(method: LoRA, path: str, plain: Any, rows: Rows) -> Factor:
    """B^T (r, widths of all slices)."""
    values = plain.weight.detach().flatten(1)
    shapes = [(stop - start, values.shape[1]) for start, stop in rows]
    masks = np.concatenate([mask_bits(method, path, f"B.{i}", shape).T for i, shape in enumerate(shapes)], axis=1)
    initial = torch.cat([values[start:stop] for start, stop in rows]).T
    dense = partial(side_by_side, rows=rows, width=len(values))
    return Factor(method, np.ascontiguousarray(masks), plain, initial, nn.init.zeros_, rows, dense)


peft_type()
register_peft_method(name="capaboost", config_cls=CapaBoostConfig, model_cls=CapaBoostModel, prefix="lora_")
