"""A method of peft: its settings, the layers that peft makes for it, and the row that says which it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from capaboost_core.adapted import Adapted
from capaboost_core.errors import UserError, reason_of
from capaboost_core.extras import need
from capaboost_core.methods.base import Method, resolve_config
from capaboost_core.methods.from_peft.layer import PeftLinear, stand_in
from capaboost_core.plan import Plan, Target, plan_suffixes
from capaboost_core.roles import MATRICES, Roles
from capaboost_core.settings.base import Text, Texts

WORDS = {"attention-qv": ("q", "v"), "all-linear": MATRICES}  # for targets


@dataclass(frozen=True)
class Row:
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
    """peft's layer in the place of each target; a layer that fuses q, k and v is adapted as a whole."""

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: PeftLinear}
    wanted: ClassVar[str] = "nn.Linear"
    own_places: ClassVar[tuple[str, ...]] = ("q", "v")
    row: ClassVar[Row]

    targets: Text | Texts | None = Field(
        None,
        examples=["[attn.proj]"],
        json_schema_extra={"null": "the method's own places"},
        description="attention-qv, all-linear (q, k, v, o, f1 and f2), or full suffixes of the paths of linear "
        "layers. peft adapts a layer that fuses q, k and v as a whole.",
    )

    @property
    def drops(self) -> bool:
        """Whether there is dropout in training."""
        return getattr(self, "dropout", 0.0) > 0

    @property
    def stored_share(self) -> float:
        return 1.0 if self.row.holds_r else 0.0

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """The listed layers, or the method's own places, fused layers as a whole."""
        if self.targets is None or self.targets in WORDS:
            places = self.own_places if self.targets is None else WORDS[self.targets]
            return Plan(roles.targets(places, whole=True), roles.head, roles.switches)
        suffixes = (self.targets,) if isinstance(self.targets, str) else self.targets
        return Plan(plan_suffixes(model, suffixes, roles.head).targets, roles.head, roles.switches)

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
            with warnings.catch_warnings():  # of a projection that is drawn from its seed, and of Conv1D
                warnings.simplefilter("ignore")
                return self.peft_layers({target: stand_in(base, precision) for target, base in bases.items()})
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"peft cannot put {self.name} there: {reason_of(error)}") from error

    def loaded(self, layers: list[Adapted], of_base: bool) -> None:
        """Set what left the meta device without values, and what starts from weights that are others now."""
        unset = [layer for layer in layers if layer.unset]
        from_weight = self.row.splits_weight or "use_dora" in self.row.arguments
        stale = [layer for layer in layers if of_base and from_weight and layer not in unset and layer.at_start]
        if not unset and not stale:
            return
        made = self._made({layer.target: layer.plain() for layer in layers})
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
        if values.get(self.row.settings.get("alpha"), 0) is None:
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
