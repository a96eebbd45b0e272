"""CapaBoost-LoRA's layer: d masked low-rank modules on a frozen linear layer, as one product of factors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from capaboost_core.errors import UserError
from capaboost_core.layers import Filler, MacCount, Mergeable, dropout_of, empty_like_weight, macs_of
from capaboost_core.methods.method import Method
from capaboost_core.plan import Plan, Roles, Target, plan_suffixes
from capaboost_core.settings import Text, Texts, refuse
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight, TyingSettings, eager, transformed

# Settings that LoRA and the adapters have in common: rank, scale, dropout and targets.


TARGET_PRESETS = ("attention-qv", "fused-qkv", "all-linear")  # what LoRA's `targets` may be
Scaling = Literal["alpha-r", "stable"]
FLOAT32 = (2.0**-126, 2.0**127)  # the scales that float32 holds as normal numbers


class LowRankSettings(TyingSettings, Method):
    """Two tied factors of inner dimension r, whose product is scaled by what `scaling` makes of alpha.

    `stable` divides by the r d density^2 products of entries that lie behind an entry of the increment in the mean,
    whatever the kind of mask; `alpha-r` by r, as the paper does. docs/scale.md derives how an increment then moves in
    its first steps of Adam, and why `stable` is the default.
    """

    budget: ClassVar[str | None] = "r"
    target_presets: ClassVar[tuple[str, ...]] = ()  # names that `targets` may be
    if_unrecorded: ClassVar[Mapping[str, Any]] = {"scaling": "alpha-r"}

    r: int = Field(
        default=8, ge=1, le=65536, description="Inner dimension of one module: LoRA's rank, a bottleneck's width."
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        examples=["16"],
        json_schema_extra={"null": "alpha = r"},
        description="The scale of the increment, before what `scaling` divides it by.",
    )
    scaling: Scaling = Field(
        default="stable",
        description="stable: the increment is scaled by alpha / (r d density^2), so that alpha and the learning rate "
        "mean the same for every d, density and r; alpha-r: by alpha / r, as in the paper. Equal for d = 1 and "
        "density 1.",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        examples=["0.1"],
        description="Probability of dropping an entry of the module's input in training.",
    )
    init: Literal["lora", "official"] = Field(
        default="lora",
        description="lora: Kaiming-uniform A over its fan-in, B = 0; official: the authors' code, A ~ U(-1/sqrt(r), "
        "1/sqrt(r)) for LoRA, N(0, 0.02) on both factors for adapters.",
    )
    targets: Text | Texts | None = Field(
        default=None,
        examples=["[attn.proj]"],
        json_schema_extra={"null": "the method's default targets"},
        description="Full suffixes of the paths of linear layers, in place of the method's default targets.",
    )

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if not FLOAT32[0] <= self.bias_scale <= FLOAT32[1]:
            refuse("alpha", self.alpha, f"alpha / r scales the increment and must fit into float32; try {self.r}")
        if not FLOAT32[0] <= self.scale <= FLOAT32[1]:
            refuse("scaling", self.scaling, "alpha / (r d density^2) must fit into float32; raise density")
        return self

    @property
    def scale(self) -> float:
        """The factor of the increment's products."""
        if self.scaling == "alpha-r":
            return self.bias_scale
        return self.bias_scale / self.num_tied / self.density / self.density

    @property
    def bias_scale(self) -> float:
        """alpha / r, the factor of what is added once and without a mask."""
        return 1.0 if self.alpha is None else self.alpha / self.r

    @property
    def rows(self) -> int:
        """The number of rows of A, and of columns of B, in a layer."""
        return self.r

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """The listed layers, or the method's default targets."""
        if self.targets is None or self.targets in self.target_presets:
            return Plan(self.default_targets(model, roles), roles.head, roles.required_flags)
        suffixes = (self.targets,) if isinstance(self.targets, str) else self.targets
        return Plan(plan_suffixes(model, suffixes, roles.head).targets, roles.head, roles.required_flags)

    def default_targets(self, model: nn.Module, roles: Roles) -> tuple[Target, ...]:
        """The method's default targets, or those of a preset that `targets` names."""
        raise NotImplementedError


Slices = Sequence[tuple[int, int]]  # (start, stop) ranges of an output


class LoRALayer(Mergeable):
    """Linear layer plus s * sum_i (B * mb_i)(A * ma_i), s = `config.scale`, on its output or slices of it (Eq. 4).

    The d modules are one product of concatenated factors, [B_1 .. B_d][A_1; ..; A_d], of rank d*r; a
    step has two small products for any d. B starts at zero, so the output starts as the base's. `reference.py` has
    the formula module by module.

    Worked example: a fused qkv of width 768 with increments on q and v, r = 8, d = 2, x (64, 197, 768):
    out = x W^T + b is (64, 197, 2304); x A^T is (64, 197, 32), 16 columns for q and 16 for v; each
    times its B of (768, 16) is added to out[..., :768] and to out[..., 1536:].

    Merged, it computes x (W + increments)^T.

    Args:
        base: The frozen layer to adopt.
        config: The adapter's configuration.
        target: Path of the layer, and the slices of its output that get an increment each.
    """

    low_rank: ClassVar[bool] = True
    fan_in_fan_out: ClassVar[bool] = False  # peft's word: whether the weight is held as (in, out)

    in_features: int
    out_features: int
    weight: Tensor
    bias: Tensor | None
    lora_A: TiedWeight
    lora_B: TiedWeight

    def __init__(self, base: nn.Module, config: LowRankSettings, target: Target):
        self.adopt(base, target.path)
        self.scaling, self.dropout, self.drops = config.scale, dropout_of(config.dropout), config.dropout > 0
        self.slices: Slices = target.slices or ((0, self.out_features),)
        self.widths = [stop - start for start, stop in self.slices]
        self.bound = bound = 1 / math.sqrt(self.in_features if config.init == "lora" else config.r)
        a = empty_like_weight(self.weight, len(self.slices), config.rows, self.in_features)
        self.lora_A = self.make_factor(config, "A", a, partial(nn.init.uniform_, a=-bound, b=bound))
        b = empty_like_weight(self.weight, config.rows, sum(self.widths))
        self.lora_B = self.make_factor(config, "B", b, nn.init.zeros_)
        self.allow_merging()
        self.train(base.training)

    def make_factor(self, config: LowRankSettings, name: str, empty: Tensor, fill: Filler) -> Any:
        """A of all slices (slices, r, in), or B^T of all slices side by side (r, widths); an empty one is given."""
        parts = self.widths if name == "B" else ()
        return config.make_weight(name, lambda: self.masks(config, name), fill(empty), fill, parts)

    def masks(self, config: LowRankSettings, name: str) -> NDArray[np.uint8]:
        """Of the factor "A" or "B"; longer names, such as "A.expert", have masks of their own."""
        if name.startswith("A"):
            shape = (config.rows, self.in_features)
            return np.stack([mask_bits(config, self.path, f"{name}.{i}", shape) for i in range(len(self.slices))])
        shapes = [(width, config.rows) for width in self.widths]
        return np.concatenate([mask_bits(config, self.path, f"{name}.{i}", s).T for i, s in enumerate(shapes)], axis=1)

    @property
    def matrix(self) -> Tensor:
        """The frozen weight as (out, in)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out).

        Raises:
            UserError: In a training step while merged, which would leave the increments without gradients.
        """
        if self.disabled:
            return F.linear(x, self.matrix, self.bias)
        merged = self.current_merged()
        if merged is not None:
            return F.linear(x, merged.weight, self.bias)
        dropped = self.dropout(x) if self.drops and self.training else None
        a, b = self.factors(dtype=precision(x))
        return low_rank_linear(x, self.matrix, self.bias, self.slices, a, b, self.scaling, dropped)

    def factors(self, training: bool | None = None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Concatenated over slices and copies: A (slices*d*r, in) and B^T (d*r, widths); see `TiedWeight.copies`."""
        training = self.training if training is None else training
        return self.factor("A", training, dtype).flatten(0, 2), self.factor("B", training, dtype).flatten(0, 1)

    def factor(self, name: str, training: bool, dtype: torch.dtype | None) -> Tensor:
        """The copies of A (slices, d, r, in), or of B^T (d, r, widths)."""
        return getattr(self, f"lora_{name}").copies(training, dtype)

    def factors_by_slice(self) -> list[tuple[Tensor, Tensor]]:
        """A (d*r, in) and s * B (width, d*r) of each slice, as evaluation sees them."""
        a, b = self.factors(training=False)
        return list(zip(a.chunk(len(self.slices)), (self.scaling * b.T).split(self.widths), strict=True))

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        return macs_of([[self.lora_A], [self.lora_B]], needs_gradient)

    @torch.no_grad()
    def delta_weights(self) -> list[Tensor]:
        """The (out, in) increment of each slice in single precision or better, as evaluation sees it."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return [b @ a for a, b in self.factors_by_slice()]

    def merged_weight(self) -> tuple[Tensor, None]:
        """The weight with its increments, (out, in), in the weight's precision."""
        total = self.matrix.detach().clone()
        for (start, stop), increment in zip(self.slices, self.delta_weights(), strict=True):
            rows = total[start:stop]
            rows.copy_(rows.to(increment.dtype) + increment)
        return total, None

    def as_stored(self, weight: Tensor) -> Tensor:
        return weight.T.contiguous() if self.fan_in_fan_out else weight


class LoRALinear(LoRALayer, nn.Linear):
    """`nn.Linear` with increments."""


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slices: Slices,
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropped: Tensor | None = None,
) -> Tensor:
    """x W^T + b, plus scaling * x A^T B^T on each slice of the output, in the precision of x or of autocast.

    Args:
        x: (..., in).
        weight: (out, in), frozen or not.
        bias: (out), or None.
        slices: (start, stop) ranges of the output.
        a: (len(slices) * rank, in), A of each slice under that of the one before.
        b: (rank, sum of widths), B^T of each slice beside that of the one before.
        scaling: The factor of the increments.
        dropped: What the increments see in place of x, if that is not x.

    Raises:
        UserError: In a backward pass that is to be differentiated, if autocast has lowered x for the forward pass.
    """
    dtype = precision(x)
    a, b, dropped = a.to(dtype), b.to(dtype), None if dropped is None else dropped.to(dtype)
    if not transformed():
        return _LowRankLinear.apply(x, dropped, weight, bias, slices, a, b, scaling)  # the same, faster and smaller
    x = x.to(dtype)
    hidden = (x if dropped is None else dropped) @ a.T
    out = F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
    return out + scaling * padded_deltas(hidden, b, slices, out.shape[-1])


def precision(x: Tensor) -> torch.dtype:
    """What a linear layer computes in; autocast lets double precision be."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):  # the meta device has none
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def padded_deltas(hidden: Tensor, b: Tensor, slices: Slices, width: int) -> Tensor:
    """hidden B^T of all slices, (..., width), zero in the columns between them.

    For what cannot write to a slice in place: compilers fuse the sum with what reads it, and would copy an output for
    each slice; torch.onnx's tracer loses what is written to a view.
    """
    parts, end = [], 0
    zero = hidden.new_zeros(()).expand(*hidden.shape[:-1], 1)
    for columns, at_hidden, at_b in sorted(_columns(slices, len(b)), key=lambda columns: columns[0].start):
        parts += [zero.expand(*hidden.shape[:-1], columns.start - end), hidden[..., at_hidden] @ b[:, at_b]]
        end = columns.stop
    return torch.cat([*parts, zero.expand(*hidden.shape[:-1], width - end)], -1)


def _columns(slices: Slices, rank: int) -> Iterator[tuple[slice, slice, slice]]:
    """The columns of each slice in the output, in the hidden values, and in B^T."""
    begin = 0
    for index, (start, stop) in enumerate(slices):
        end = begin + stop - start
        yield slice(start, stop), slice(index * rank, (index + 1) * rank), slice(begin, end)
        begin = end


class _LowRankLinear(torch.autograd.Function):
    """`low_rank_linear` as one step of autograd.

    Per call there is one large product, one with all A stacked, and one small product for each slice that
    adds to the output in place; the gradient of x is one sum, made in place as well. For the backward pass
    autograd holds x (or what is given for it as `dropped`), the hidden x A^T, the factors, and the weight
    itself, in its own precision: no copy. A backward pass that is differentiated itself computes the hidden anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        slices: Slices,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        ctx.dtype, given = x.dtype, x
        x = cast_once(x, a.dtype)
        hidden = _rows(x if dropped is None else dropped) @ a.T  # first, while its input is in the cache
        out = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if not eager():
            out = out + scaling * padded_deltas(hidden, b, slices, out.shape[-1]).view(out.shape)
        else:
            rows = out.view(-1, out.shape[-1])
            for columns, at_hidden, at_b in _columns(slices, len(b)):
                rows[:, columns].addmm_(hidden[:, at_hidden], b[:, at_b], alpha=scaling)
        needs_x = dropped is None or ctx.needs_input_grad[2]
        ctx.save_for_backward(x if needs_x else None, dropped, weight, hidden, a, b)
        ctx.slices, ctx.scaling, ctx.shape, ctx.cast = slices, scaling, x.shape, needs_x and x is not given
        return out  # and not a view made here, which a model could not change in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dropped, weight, hidden, a, b = ctx.saved_tensors
        needs_x, needs_dropped, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        seen = _rows(x if dropped is None else dropped)
        grad = grad.reshape(-1, weight.shape[0])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grad_hidden, grad_b = _differentiable(ctx, grad, seen, a, b)
        else:
            grad_hidden, grad_b = _in_place(ctx, grad, hidden, b)
        grad_a = grad_hidden.T @ seen  # as in forward: the small products come before the large one
        grad_x = grad_dropped = None
        if needs_x and dropped is None:
            grad_x = (grad_hidden @ a).to(grad.dtype)  # a backward pass within autocast has lowered it
            grad_x = grad_x.addmm_(grad, weight.to(grad.dtype)).view(ctx.shape).to(ctx.dtype)
        elif needs_x:
            grad_x = (grad @ weight.to(grad.dtype)).view(ctx.shape).to(ctx.dtype)
        if needs_dropped:
            grad_dropped = (grad_hidden @ a).view(ctx.shape)
        grad_weight = grad.T @ _rows(x) if needs_weight else None
        grad_bias = grad.sum(0) if needs_bias else None
        return grad_x, grad_dropped, grad_weight, grad_bias, None, grad_a, grad_b, None


def _in_place(ctx: Any, grad: Tensor, hidden: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the hidden values and of B^T, each slice written to its columns."""
    all_columns = list(_columns(ctx.slices, len(b)))
    grad_hidden, grad_b = torch.empty_like(hidden), torch.empty_like(b)
    for columns, at_hidden, at_b in all_columns:
        grad_hidden[:, at_hidden].addmm_(grad[:, columns], b[:, at_b].T, beta=0, alpha=ctx.scaling)
    for columns, at_hidden, at_b in all_columns:
        grad_b[:, at_b].addmm_(hidden[:, at_hidden].T, grad[:, columns], beta=0, alpha=ctx.scaling)
    return grad_hidden, grad_b


def _differentiable(ctx: Any, grad: Tensor, seen: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same as functions of what the layer was given, for derivatives of the gradients."""
    if ctx.cast:
        raise UserError(
            "a lowered copy of an adapted layer's input has no second derivatives; leave autocast out of the passes "
            "whose gradients are differentiated (create_graph=True)"
        )
    hidden, all_columns = seen @ a.T, list(_columns(ctx.slices, len(b)))
    grad_hidden = [grad[:, columns] @ b[:, at_b].T for columns, _, at_b in all_columns]
    grad_b = [hidden[:, at_hidden].T @ grad[:, columns] for columns, at_hidden, _ in all_columns]
    return ctx.scaling * torch.cat(grad_hidden, 1), ctx.scaling * torch.cat(grad_b, 1)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


# The last input that autocast lowered, its version and its copy, both weakly: a copy lives as long as autograd holds
# it. One tuple, so that threads see all of it or none.
_last: tuple[TensorWeakRef, int, TensorWeakRef] | None = None


def cast_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a precision, as values without a gradient of their own; one copy for layers in a row that read the same x.

    Autocast keeps lowered weights for reuse but no lowered inputs, so query and value would hold a copy each until the
    backward pass.
    """
    global _last
    if x.dtype == dtype:
        return x
    if torch.compiler.is_compiling() or x.is_inference():  # compilers do it by themselves; no version to compare
        return x.to(dtype)
    if _last is not None:
        source, version, lowered = _last
        copy = lowered()
        if source() is x and version == x._version and copy is not None and copy.dtype == dtype:
            return copy
    copy = x.to(dtype)
    _last = TensorWeakRef(x), x._version, TensorWeakRef(copy)
    return copy
