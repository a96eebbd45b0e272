"""Methods of peft: a frozen layer whose addition a layer of peft computes, and the settings that make it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from capaboost_core.errors import UserError, reason_of
from capaboost_core.extras import need
from capaboost_core.layers import BEFORE_FORWARD, Adapted, MacCount, Mergeable, settle_weights
from capaboost_core.methods.method import Method, resolve_config
from capaboost_core.plan import MATRICES, Plan, Roles, Target, plan_suffixes
from capaboost_core.settings import Text, Texts

ADAPTER = "default"  # peft's name for an adapter that was given none


class PeftLayer(Mergeable):
    """What peft's layer makes of x, on top of this layer's frozen weight and bias.

    The frozen parameters are held here under the base's names. peft's layer is the child `peft`, with this layer as
    its base layer, so it holds no second copy, and never changes the weight.

    PiSSA starts peft's factors at the principal part s B_0 A_0 of W and wants W - s B_0 A_0 for the frozen weight. W
    stays as it is, and the part is subtracted from its output: the factors `removed` are frozen and saved with the
    adapter, as another machine's singular value decomposition would differ in the last digits.

    Args:
        base: The frozen layer to adopt.
        config: The method.
        target: Path of the layer.
        made: peft's layer for a stand-in of the base.
    """

    fan_in_fan_out: ClassVar[bool] = False  # peft's word: whether the weight is held as (in, out)

    in_features: int
    out_features: int
    weight: nn.Parameter
    bias: nn.Parameter | None
    peft: Any  # the methods' layers have no common class
    memory: dict[str, Any]  # AdaLoRA's

    def __init__(self, base: nn.Module, config: FromPeft, target: Target, made: Any):
        self.adopt(base, target.path)
        made.to(wide(self.weight.dtype))  # peft splits weights in single precision
        self.drops, self.removed, self.target, self.unset = config.drops, nn.ParameterDict(), target, False
        if config.row.splits_weight:
            factors = _principal(made).items()
            self.removed.update({k: nn.Parameter(v.detach().clone(), requires_grad=False) for k, v in factors})
        del made.base_layer
        made.base_layer = BaseLayer(self)
        self.peft = made
        self.allow_merging()
        self.train(base.training)

    def train(self, mode: bool = True) -> PeftLayer:
        """Without dropout peft's layer stays in evaluation, where LoHa and LoKr need no random number a step."""
        super().train(mode)
        self.peft.train(mode and self.drops)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out).

        Raises:
            UserError: In a training step while merged, or without values since it left the meta device.
        """
        if self.disabled:
            return super().forward(x)
        if self.unset:
            raise UserError(f"{self.path} has had no values since to_empty; call load_state_dict of the model")
        sums = self.current_merged()
        return self.peft(x) if sums is None else F.linear(x, sums.weight, sums.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PeftLayer:
        was_meta = self._is_meta()
        super()._apply(fn, recurse)
        self.unset = self.unset or (was_meta and not self._is_meta())
        return self

    def _is_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.parameters())

    @property
    def at_start(self) -> bool:
        """Whether nothing of an addition that starts from the frozen weight has been trained."""
        if self.removed:
            return all(torch.equal(value, self.removed[name]) for name, value in _principal(self.peft).items())
        return not self.peft.lora_B[ADAPTER].weight.any()

    @torch.no_grad()
    def fill(self, made: nn.Module, names: Iterable[str]) -> None:
        """Take values of peft's layer for another weight, by name; of factors those to be subtracted follow."""
        mine, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (self.peft, made))
        for name in names:
            mine[name].copy_(theirs[name])
            for factor, removed in self.removed.items() if name.startswith("lora_") else ():
                removed.copy_(_principal(self.peft)[factor])

    def without_addition(self, x: Tensor) -> Tensor:
        """What peft's layer adds to."""
        out = super().forward(x)
        if not self.removed:
            return out
        a, b = self.removed["A"], self.removed["B"]
        return out - F.linear(F.linear(x.to(a.dtype), a), b).to(out.dtype)

    @property
    def low_rank(self) -> bool:
        """Whether its addition is one product s B A: of AdaLoRA, rsLoRA and PiSSA, and not of DoRA or VeRA."""
        return hasattr(self.peft, "lora_A") and not getattr(self.peft, "lora_variant", None)

    @property
    def slices(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.out_features),)

    def factors_by_slice(self) -> list[tuple[Tensor, Tensor]]:
        """A (rank, in) and s * B (out, rank): AdaLoRA's of the ranks left, PiSSA's less those that it started with."""
        a, b, scale = self.peft.lora_A[ADAPTER], self.peft.lora_B[ADAPTER], self.peft.scaling[ADAPTER]
        if hasattr(self.peft, "lora_E"):
            kept = self.peft.lora_E[ADAPTER].flatten() != 0
            left = kept.nonzero().flatten() if kept.any() else kept.new_zeros(1, dtype=torch.int64)  # LoRA has one
            a, b = (a * self.peft.lora_E[ADAPTER])[left], b[:, left]
            scale = scale / (self.peft.ranknum[ADAPTER] + 1e-5)  # as peft has it
        else:
            a, b = a.weight, b.weight
        if not self.removed:
            return [(a, scale * b)]
        return [(torch.cat([a, self.removed["A"]]), torch.cat([scale * b, -self.removed["B"]], dim=1))]

    def merged_weight(self) -> tuple[Tensor, Tensor | None]:
        """As peft merges, into a copy in single precision or better; weight (out, in)."""
        plain: Any = stand_in(self.plain())
        for parameter in plain.parameters():
            parameter.data = parameter.clone()
        if self.removed:
            part = self.removed["B"] @ self.removed["A"]
            plain.weight -= part.T if self.fan_in_fan_out else part
        twin = copy.copy(self.peft)
        vars(twin).update(base_layer=plain, merged_adapters=[], _caches={})
        twin.merge()
        weight = plain.weight.T if self.fan_in_fan_out else plain.weight
        bias = None if self.bias is None else plain.bias.detach().to(self.bias.dtype)
        return weight.detach().to(self.weight.dtype), bias

    def as_stored(self, weight: Tensor) -> Tensor:
        return weight.T.contiguous() if self.fan_in_fan_out else weight

    def drawn(self) -> dict[str, np.ndarray]:
        """peft's random projections and indices, in the precision in which they are sampled."""
        buffers = {name: b.float() if b.is_floating_point() else b for name, b in self.peft.named_buffers()}
        return {name: buffer.cpu().numpy() for name, buffer in buffers.items()}

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        """As torch counts them in calls with one row and with two; their gradients are counted as they are dispatched.

        Products of weights alone, as of LoHa's factors, are done once a call.
        """
        one, two = self._added_products(1), self._added_products(2)
        row, call = two - one, 2 * one - two
        return [MacCount(row, row, False, False)] + (
            [MacCount(call, call, False, False, per_call=True)] if call else []
        )

    @torch.no_grad()
    def _added_products(self, rows: int) -> int:
        x = self.weight.new_zeros(rows, self.in_features)
        with FlopCounterMode(display=False) as counter:
            self.peft(x)
        return counter.get_total_flops() // 2 - rows * self.weight.numel()


def _principal(made: Any) -> dict[str, Tensor]:
    """The factors of peft's layer, B with the scale."""
    return {"A": made.lora_A[ADAPTER].weight, "B": made.scaling[ADAPTER] * made.lora_B[ADAPTER].weight}


class PeftLinear(PeftLayer, nn.Linear):
    """`nn.Linear` with an addition of peft's."""


class BaseLayer:
    """An adapted layer as its peft layer sees it: the frozen part alone; no module, so that nothing is there twice."""

    def __init__(self, layer: PeftLayer):
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer.without_addition(x)

    @property
    def weight(self) -> nn.Parameter:
        return self.layer.weight

    @property
    def bias(self) -> nn.Parameter | None:
        return self.layer.bias


def stand_in(layer: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of a linear layer with parameters of its own on the same memory, if that has the dtype.

    peft freezes it, and for PiSSA gives it another weight.

    Args:
        layer: The layer.
        dtype: By default the layer's own, or single precision if that is more.
    """
    copied = copy.copy(layer)
    for name in BEFORE_FORWARD:
        vars(copied).pop(name, None)
    copied._parameters, copied._buffers = copied._parameters.copy(), copied._buffers.copy()
    settle_weights(copied)
    copied._parameters = {
        name: p if p is None else nn.Parameter(p.detach().to(dtype or wide(p.dtype)), requires_grad=False)
        for name, p in copied._parameters.items()
    }
    return copied


def wide(dtype: torch.dtype) -> torch.dtype:
    """Single precision or better."""
    return torch.promote_types(dtype, torch.float32)


TARGET_PRESETS = {"attention-qv": ("q", "v"), "all-linear": MATRICES}  # for targets


@dataclass(frozen=True)
class PeftMethod:
    """What one method is in peft.

    Attributes:
        config: The name of peft's configuration class.
        doc: The formula, and where it comes from.
        settings: Its settings, with peft's names for them.
        defaults: Of settings that start otherwise than for the other methods.
        arguments: What peft's configuration is given besides.
        budget: The setting that a budget of parameters changes.
        splits_weight: Whether peft moves a part of the frozen weight into the factors at the start.
        holds_r: Whether a weight of each layer has r entries or more.
    """

    config: str
    doc: str
    settings: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    budget: str | None = "r"
    splits_weight: bool = False
    holds_r: bool = True


class FromPeft(Method):
    """peft's layer on each target; a layer that fuses q, k and v gets one addition."""

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: PeftLinear}
    wanted: ClassVar[str] = "nn.Linear"
    default_roles: ClassVar[tuple[str, ...]] = ("q", "v")
    row: ClassVar[PeftMethod]
    if TYPE_CHECKING:
        r: int  # the settings of a row declare it

    targets: Text | Texts | None = Field(
        default=None,
        examples=["[attn.proj]"],
        json_schema_extra={"null": "the method's default targets"},
        description="attention-qv, all-linear (q, k, v, o, f1 and f2), or full suffixes of the paths of linear "
        "layers. A layer that fuses q, k and v gets one addition.",
    )

    @property
    def drops(self) -> bool:
        """Whether there is dropout in training."""
        return getattr(self, "dropout", 0.0) > 0

    @property
    def stored_share(self) -> float:
        return 1.0 if self.row.holds_r else 0.0

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """The listed layers, or the method's default targets; a fused layer is one target."""
        if self.targets is None or self.targets in TARGET_PRESETS:
            names = self.default_roles if self.targets is None else TARGET_PRESETS[self.targets]
            return Plan(roles.targets(names, whole=True), roles.head, roles.required_flags)
        suffixes = (self.targets,) if isinstance(self.targets, str) else self.targets
        return Plan(plan_suffixes(model, suffixes, roles.head).targets, roles.head, roles.required_flags)

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """All at once, as some methods share projections of the size of the largest layer.

        Raises:
            UserError: If peft is not installed, a target is no linear layer, or peft refuses.
        """
        self.check_kinds(modules, plan.targets)
        made = self._made({target: modules[target.path] for target in plan.targets})
        return {t.path: self.layers[type(modules[t.path])](modules[t.path], self, t, made[t]) for t in plan.targets}

    def _made(self, bases: Mapping[Target, nn.Module]) -> dict[Target, nn.Module]:
        need("peft", "peft", "methods of peft")
        precision = torch.float32 if self.row.splits_weight else None  # peft's decomposition takes no other
        try:
            with warnings.catch_warnings():  # about a projection from its seed, and about Conv1D
                warnings.simplefilter("ignore")
                return self.peft_layers({target: stand_in(base, precision) for target, base in bases.items()})
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"peft cannot put {self.name} there: {reason_of(error)}") from error

    def loaded(self, layers: list[Adapted], of_base: bool) -> None:
        """Set what left the meta device without values, and what starts from weights that are others now."""
        peft_layers = [layer for layer in layers if isinstance(layer, PeftLayer)]
        unset = [layer for layer in peft_layers if layer.unset]
        from_weight = self.row.splits_weight or "use_dora" in self.row.arguments
        stale = [layer for layer in peft_layers if of_base and from_weight and layer not in unset and layer.at_start]
        if not unset and not stale:
            return
        made = self._made({layer.target: layer.plain() for layer in peft_layers})
        for layer in (*unset, *stale):
            buffers = [name for name, _ in layer.peft.named_buffers()]
            parameters = [name for name, _ in layer.peft.named_parameters()]
            if layer in stale and not self.row.splits_weight:
                parameters = [name for name in parameters if name.startswith("lora_magnitude_vector")]
            layer.fill(made[layer.target], buffers + (parameters if of_base else []))
            layer.unset = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its settings: a class that is made from a row is no attribute of a module."""
        return resolve_config, (self.to_dict(),)

    def peft_config(self) -> Any:
        """peft's configuration, for layers that are named as `peft_layers` names them."""
        import peft

        values = {theirs: getattr(self, ours) for ours, theirs in self.row.settings.items()}
        if values.get(self.row.settings.get("alpha", ""), 0) is None:
            values[self.row.settings["alpha"]] = self.r
        return getattr(peft, self.row.config)(target_modules=r"(in|out)\d+", **values, **self.row.arguments)

    def peft_layers(self, stand_ins: Mapping[Target, nn.Module]) -> dict[Target, nn.Module]:
        """peft's layers, made in a model that holds nothing but the stand-ins."""
        import peft

        names = {target: f"{'in' if target.of_input else 'out'}{i}" for i, target in enumerate(stand_ins)}
        parent = nn.ModuleDict({names[target]: layer for target, layer in stand_ins.items()})
        empty = any(parameter.is_meta for parameter in parent.parameters())
        peft.get_peft_model(parent, self.peft_config(), low_cpu_mem_usage=empty)
        return {target: parent[name] for target, name in names.items()}
