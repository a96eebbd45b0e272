"""What a method is: its settings, the layers that it puts in, and what it does around training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic.fields import FieldInfo
from torch import Tensor, nn

from capaboost_core.adapted import Adapted
from capaboost_core.errors import UserError
from capaboost_core.plan import Plan
from capaboost_core.roles import Roles
from capaboost_core.settings.base import Settings, hint
from capaboost_core.settings.text import shown
from capaboost_core.settings.yaml_file import read_yaml

METHODS: dict[str, type[Method]] = {}
PRESETS: dict[str, Method] = {}  # what --method and `capaboost="..."` take
UNTIED = {"num_tied": 1, "density": 1.0}  # true of a method without modules: saying so is no mistake


def register_method(name: str, **presets: Mapping[str, Any]) -> Callable[[type[Method]], type[Method]]:
    """Make a class the method `name`; nothing else has to know of it.

    Args:
        name: What `method` says in settings and files.
        **presets: Settings by the name of a preset, with `_` for `-`; without any, `name` has the defaults.
    """

    def register(cls: type[Method]) -> type[Method]:
        cls.name = name
        METHODS[name] = cls
        for preset, settings in (presets or {name: {}}).items():
            PRESETS[preset.replace("_", "-")] = cls(**settings)
        return cls

    return register


class Method(Settings):
    """A way to adapt a model, with its settings; its subclasses are the methods.

    `Method(method="lora", r=4)` is the one of that name, as in settings and files. A subclass says in
    pydantic fields what can be set, in `plan` where it goes, in `layers` what it puts there, and overrides what
    else it needs.

    Attributes:
        name: Given by `register_method`.
        layers: The adapted layer for each class of frozen layer, made as cls(base, method, target).
        wanted: These classes in words.
        recipe: The method whose settings files it takes where it has none of its own.
        budget: The setting that a budget of parameters changes.
        starts_as_base: Whether an adapted model computes as its base at first, with the default settings.

    Raises:
        UserError: If a setting is unknown to the method, or is out of range.
    """

    kind: ClassVar[str] = "adapter setting"
    name: ClassVar[str] = ""
    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {}
    wanted: ClassVar[str] = "layer that this method adapts"
    recipe: ClassVar[str] = "lora"
    budget: ClassVar[str | None] = None
    starts_as_base: ClassVar[bool] = True

    def __new__(cls, method: Any = None, **_: Any) -> Self:
        return super().__new__(find_method("lora" if method is None else method) if cls is Method else cls)

    def __init__(self, method: str | None = None, **values: Any):
        super().__init__(**values if method is None else {"method": method, **values})

    def _fill(self, values: Any, prefix: str) -> None:
        if isinstance(values, Mapping):
            values = self._own(values, prefix)
        super()._fill(values, prefix)

    def _own(self, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """The settings but for the method's name, and for what is true of a method without modules."""
        own = dict(values)
        if own.pop("method", self.name) != self.name:
            raise UserError(f"{prefix}method is {shown(values['method'])}, but this is method {self.name}; drop it")
        for name, value in list(own.items()):
            if name in type(self).model_fields or not any(name in cls.model_fields for cls in METHODS.values()):
                continue
            if UNTIED.get(name) != own.pop(name):
                raise UserError(f"{prefix}{name} is {shown(value)}; it means nothing to method {self.name}; drop it")
        return own

    @property
    def method(self) -> str:
        return self.name

    @property
    def label(self) -> str:
        """The name in results and folders."""
        return self.name

    @property
    def least_entries(self) -> float:
        """What the largest weight of an adapted layer holds at least, by the settings alone."""
        return 0

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """The settings that mean something beside the given ones."""
        return set(cls.model_fields)

    @classmethod
    def fields_for(cls, values: Mapping[str, Any]) -> dict[str, FieldInfo]:
        """The settings of the method that the values name, `lora` if they name none."""
        return find_method(values.get("method", "lora")).model_fields

    @classmethod
    def documented(cls) -> dict[str, FieldInfo]:
        """The settings of all methods, each as the first of its methods has it."""
        fields = {"method": FieldInfo(annotation=Literal[*METHODS], default="lora", description="What is trained.")}
        for method in METHODS.values():
            fields = method.model_fields | fields
        return fields

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], prefix: str = "") -> Self:
        """Build from plain values, as read from YAML or JSON; `method` says which, `lora` if it is left out.

        Args:
            values: By name of the setting.
            prefix: What stands before the names in messages, such as `adapter.`.

        Raises:
            UserError: If a setting is unknown, means nothing to the method, or is out of range.
        """
        if cls is Method:
            named = values.get("method", "lora") if isinstance(values, Mapping) else "lora"
            return find_method(named, prefix).from_dict(values, prefix)
        return super().from_dict(values, prefix)

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Method:
        """Read back what an adapter file holds, in files of 0.1.0 with settings that mean nothing to the method.

        Raises:
            UserError: If a setting is unknown or out of range.
        """
        if not isinstance(values, Mapping):
            return Method.from_dict(values)
        found = find_method(values.get("method", "lora"))
        known = {name for method in METHODS.values() for name in method.model_fields}
        used = found.used(values) | {"method"}
        return found.from_dict({name: value for name, value in values.items() if name in used or name not in known})

    @classmethod
    def from_yaml(cls, path: str | Path) -> Method:
        """Read a YAML file that maps setting names to values.

        Raises:
            UserError: If the file is missing, is no mapping, or holds a wrong setting.
        """
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise UserError(f"{path} must map setting names to values, such as `r: 8`")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back and JSON can hold."""
        return {"method": self.name, **super().to_dict()}

    def replace(self, **changes: Any) -> Method:
        """A copy with other values of some settings.

        Raises:
            UserError: If the changed settings are not valid.
        """
        return Method.from_dict({"method": self.name} | {n: getattr(self, n) for n in self.model_fields_set} | changes)

    # What follows a method overrides as it needs; the base adds nothing and trains the head alone.

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """Which layers of a model it takes, by their roles.

        Raises:
            UserError: If the model has no place for it.
        """
        return Plan((), roles.head)

    def check(self, model: nn.Module, plan: Plan) -> None:
        """Refuse a plan with which nothing would be trained.

        Raises:
            UserError: If so.
        """
        if self.layers and not plan.targets:
            raise UserError(f"method {self.name} found nothing to adapt in {type(model).__name__}; give targets")

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """The adapted layers by path; a parameter that is given to several of them is shared, and saved once.

        Raises:
            UserError: If a target is no layer of the method's kind.
        """
        targets = plan.targets if self.layers else ()
        for target in targets:
            found = type(modules.get(target.path))
            if found not in self.layers:
                raise UserError(
                    f"target {target.path} is a {found.__name__}, not an {self.wanted}; choose other targets"
                )
        followed = {t.path: {"linear": modules[t.follows]} if t.follows else {} for t in targets}
        return {
            t.path: self.layers[type(modules[t.path])](modules[t.path], self, t, **followed[t.path]) for t in targets
        }

    def trains(self, name: str) -> bool:
        """Whether a parameter of the base model is trained, by its name; the head always is."""
        return False

    # The training loop calls what follows in every process with the bare model, the penalty alone under autograd.

    def penalty(self, model: nn.Module) -> Tensor | None:
        """What is added to the mean loss of each step, once, however many slices and processes share its batch."""

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Called after optimizer step `step`, from 1, of `steps` in all, while the gradients are still there.

        It must do the same in every process, so it draws no random numbers of its own.
        """

    def state(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint has to hold beside the trained parameters.

        Nested dicts and lists of tensors and plain values, all finite, with the same names, shapes and types at any
        time. A selected epoch has its own.
        """
        return {}

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave; its tensors may be on the CPU."""

    def finish(self, model: nn.Module) -> None:
        """Called once, after the last step and the return to a selected epoch, and before testing and saving."""


def find_method(name: Any, prefix: str = "") -> type[Method]:
    """The class of a method.

    Raises:
        UserError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"{prefix}method is {shown(name)}; type {_listed(METHODS)}")
    return METHODS[name]


def resolve_config(value: Method | Mapping[str, Any] | str, **changes: Any) -> Method:
    """A method from itself, from its settings, or from the name of a preset; `changes` replace its settings.

    Raises:
        UserError: If the preset is unknown, or a setting is.
    """
    if isinstance(value, str):
        if value not in PRESETS:
            raise UserError(f"unknown preset {value!r}; {hint(value, PRESETS)}")
        value = PRESETS[value]
    if isinstance(value, Method):
        return value.replace(**changes) if changes else value
    if isinstance(value, Mapping):
        return Method.from_dict({**value, **changes})
    raise UserError(
        f"capaboost is a {type(value).__name__}; give a CapaBoostConfig, a dict of its settings, or a preset name"
    )


def _listed(names: Mapping[str, Any]) -> str:
    *some, last = names
    return f"{', '.join(some)} or {last}"
