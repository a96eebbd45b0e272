"""What a method is: its settings, the layers that it puts in, and what it does around training."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

from pydantic.fields import FieldInfo

from capaboost_core.errors import UserError, reason_of
from capaboost_core.settings import Settings, hint, read_yaml, shown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from capaboost_core.layers import Adapted
    from capaboost_core.plan import Plan, Roles, Target


GROUP, PLUGINS = "capaboost.methods", "CAPABOOST_PLUGINS"
Found = TypeVar("Found")
Registered = TypeVar("Registered", bound="Method")


class Registry(MutableMapping[str, Found]):
    """Entries by name. Looking up an announced name imports the module that registers it."""

    def __init__(self) -> None:
        self.entries: dict[str, Found | None] = {}
        self.modules: dict[str, str] = {}

    def announce(self, name: str, module: str) -> None:
        self.entries[name], self.modules[name] = None, module

    def __getitem__(self, name: str) -> Found:
        if self.entries[name] is None:
            _import(self.modules[name])
        found = self.entries[name]
        if found is None:
            raise UserError(f"{self.modules[name]} was to register {name}, but does not; correct its entry point")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __setitem__(self, name: str, entry: Found) -> None:
        self.entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self.entries[name]


METHODS: Registry[type[Method]] = Registry()
PRESETS: Registry[Method] = Registry()
"""What `--method` and `capaboost="..."` take: the settings of a method by the name of a preset."""


def announce(module: str, presets: Iterable[str]) -> None:
    """Make the presets of a module known, and its methods, the presets without `capaboost-`; it is not imported."""
    for preset in presets:
        PRESETS.announce(preset, module)
        if not preset.startswith("capaboost-"):
            METHODS.announce(preset, module)


def register_method(name: str, **presets: Mapping[str, Any]) -> Callable[[type[Registered]], type[Registered]]:
    """Make a class the method `name`; nothing else has to know of it.

    Args:
        name: What `method` says in settings and files.
        **presets: Settings by the name of a preset, with `_` for `-`; without any, `name` has the defaults.
    """

    def register(cls: type[Registered]) -> type[Registered]:
        cls.name = name
        METHODS[name] = cls
        for preset, settings in (presets or {name: {}}).items():
            PRESETS[preset.replace("_", "-")] = cls(**settings)
        return cls

    return register


def load_plugins() -> None:
    """Make the methods of other packages known.

    Those of the entry-point group `capaboost.methods`, whose name is the preset and whose value the module that
    registers it, are imported when they are used. The modules that the environment variable CAPABOOST_PLUGINS lists,
    as `--plugin` sets it for this process and those that it starts, are imported now.

    Raises:
        UserError: If such a module cannot be imported.
    """
    for entry in entry_points(group=GROUP):
        if entry.name not in PRESETS:  # no package takes the name of another's method
            announce(entry.module, (entry.name,))
    for module in filter(None, os.environ.get(PLUGINS, "").split(",")):
        _import(module)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:  # another's code may fail in any way
        raise UserError(f"plugin {module} cannot be imported ({reason_of(error)}); it must be a module") from error


def find_method(name: Any, prefix: str = "") -> type[Method]:
    """The class of a method.

    Raises:
        UserError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"{prefix}method is {shown(name)}; type {listed(METHODS)}")
    return METHODS[name]


def listed(names: Mapping[str, Any]) -> str:
    """`a, b or c`."""
    *some, last = names
    return f"{', '.join(some)} or {last}"


UNTIED = {"num_tied": 1, "density": 1.0}  # accepted by methods without shared weights, of which they are true


class NamedSettings(Settings):
    """Settings of a registered class. A class without a name makes one of the class that `method` names.

    Raises:
        UserError: If a setting is unknown to the method, or is out of range.
    """

    kind: ClassVar[str] = "adapter setting"
    name: ClassVar[str] = ""
    if_unrecorded: ClassVar[Mapping[str, Any]] = {}  # values of settings that older adapter files do not hold

    def __new__(cls, method: Any = None, **_: Any) -> Self:
        # `CapaBoostConfig(method="padapter", r=8)` is the public constructor since 0.1.0: which class is made depends
        # on a value, and each class declares only the settings that it uses, so that a wrong one raises an error.
        made = cls if cls.name else find_method("lora" if method is None else method)
        return super().__new__(cast(type[Self], made))

    def __init__(self, method: str | None = None, **values: Any):
        super().__init__(**values if method is None else {"method": method, **values})

    def _fill(self, values: Any, prefix: str) -> None:
        if isinstance(values, Mapping):
            values = self._own(values, prefix)
        super()._fill(values, prefix)

    def _own(self, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """The settings but for the method's name and those that are true of every method without shared weights."""
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

    @classmethod
    def fields_for(cls, values: Mapping[str, Any]) -> dict[str, FieldInfo]:
        """The fields of the method that the values name; `lora` if they name none."""
        return find_method(values.get("method", "lora")).model_fields

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], prefix: str = "") -> Self:
        """Build from plain values, as read from YAML or JSON; `method` says which, `lora` if it is left out.

        Args:
            values: By name of the setting.
            prefix: Put before the names in messages, such as `adapter.`.

        Raises:
            UserError: If a setting is unknown, means nothing to the method, or is out of range.
        """
        if not cls.name:
            named = values.get("method", "lora") if isinstance(values, Mapping) else "lora"
            return cast(Self, find_method(named, prefix).from_dict(values, prefix))
        return super().from_dict(values, prefix)

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Self:
        """Read back what an adapter file holds, in files of 0.1.0 with settings that mean nothing to the method.

        Raises:
            UserError: If a setting is unknown or out of range.
        """
        if not isinstance(values, Mapping):
            return cls.from_dict(values)
        found = find_method(values.get("method", "lora"))
        known = {name for method in METHODS.values() for name in method.model_fields}
        used = found.used(values) | {"method"}
        values = {**found.if_unrecorded, **values}
        values = {name: value for name, value in values.items() if name in used or name not in known}
        return cast(Self, found.from_dict(values))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
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

    def replace(self, **changes: Any) -> Self:
        """A copy with other values of some settings.

        Raises:
            UserError: If the changed settings are not valid.
        """
        settings = {"method": self.name} | {name: getattr(self, name) for name in self.model_fields_set} | changes
        return cast(Self, find_method(settings["method"]).from_dict(settings))


# Settings by which an added weight grows.
SIZES = ("r", "init_r", "max_r", "left", "phm_rank", "prefix_length", "bottleneck")
SIZES += ("dims", "lora_dim", "adapter_dim", "prompt_dim")


class Method(NamedSettings):
    """A way to adapt a model, with its settings; its subclasses are the methods.

    `Method(method="lora", r=4)` makes the subclass of that name, as in settings and files. A subclass declares its
    settings as pydantic fields, its targets in `plan` and its layers in `layers`, and overrides what else it needs.

    Attributes:
        name: Given by `register_method`.
        layers: The adapted layer for each class of frozen layer, made as cls(base, method, target).
        wanted: The names of these classes, for messages.
        layers_from_integration: Whether capaboost_vision and capaboost_text add the classes of their libraries to
            `layers`.
        recipe: The method whose settings files are used where it has none.
        budget: The setting that a budget of parameters changes.
        starts_as_base: Whether a newly adapted model computes as its base, with the default settings.

    Raises:
        UserError: If a setting is unknown to the method, or is out of range.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {}
    wanted: ClassVar[str] = "layer that this method adapts"
    layers_from_integration: ClassVar[bool] = False
    recipe: ClassVar[str] = "lora"
    budget: ClassVar[str | None] = None
    starts_as_base: ClassVar[bool] = True

    if TYPE_CHECKING:  # pydantic would declare a constructor with the fields of this class alone, which has none

        def __init__(self, method: str | None = None, **values: Any) -> None: ...

    @property
    def is_plain(self) -> bool:
        """Whether no weight is shared by several modules or masked."""
        return True

    @property
    def label(self) -> str:
        """The name in results and folders: `capaboost-` before a method whose weights are shared or masked."""
        return self.name if self.is_plain else f"capaboost-{self.name}"

    @property
    def budget_step(self) -> int:
        """The setting that a budget changes is a multiple of this."""
        return 1

    @property
    def size(self) -> int:
        """The largest setting by which its weights grow, times the number of experts."""
        values = [getattr(self, name, None) for name in SIZES]
        sizes = [
            size for value in values if value is not None for size in (value if isinstance(value, tuple) else (value,))
        ]
        return max(sizes, default=0) * getattr(self, "num_experts", 1)

    @property
    def stored_share(self) -> float:
        """The share of the entries of a weight of `size` or more that a file holds; 0 if the layers bound the size."""
        return getattr(self, "density", 1.0)

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """The layers of a model that it adapts, by their roles.

        Raises:
            UserError: If the model has no layer for it.
        """
        from capaboost_core.plan import Plan  # imports torch, which settings alone do not need

        return Plan((), roles.head)

    def check(self, model: nn.Module, plan: Plan) -> None:
        """Refuse a plan with which nothing would be trained.

        Raises:
            UserError: If the plan has no targets.
        """
        if self.layers and not plan.targets:
            advice = "give targets" if "targets" in type(self).model_fields else "choose lora, padapter or hadapter"
            raise UserError(f"method {self.name} found nothing to adapt in {type(model).__name__}; {advice}")

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """The adapted layers by path; a parameter that is given to several of them is shared, and saved once.

        Raises:
            UserError: If a target is no layer of the method's kind.
        """
        targets = plan.targets if self.layers or self.layers_from_integration else ()
        self.check_kinds(modules, targets)
        followed = {t.path: {"linear": modules[t.follows]} if t.follows else {} for t in targets}
        return {
            t.path: self.layers[type(modules[t.path])](modules[t.path], self, t, **followed[t.path]) for t in targets
        }

    def check_kinds(self, modules: Mapping[str, nn.Module], targets: Iterable[Target]) -> None:
        """Refuse a target that is no layer of the method's kind.

        Raises:
            UserError: If there is one.
        """
        for target in targets:
            if type(modules.get(target.path)) not in self.layers:
                raise UserError(self._refusal(target.path, type(modules.get(target.path))))

    def _refusal(self, path: str, found: type) -> str:
        if not self.layers_from_integration:
            return f"target {path} is a {found.__name__}, not an {self.wanted}; choose other targets"
        advice = "" if self.layers else "import capaboost_vision or capaboost_text, which know theirs, or "
        return (
            f"method {self.name} has no form for {path}, a {found.__module__}.{found.__name__}; {advice}choose lora, "
            "padapter or hadapter"
        )

    @property
    def is_hooked(self) -> bool:
        """Whether a training loop must call it around each step."""
        hooks = ("lr_factor", "objective", "penalty", "after_step")
        return any(getattr(type(self), name) is not getattr(Method, name) for name in hooks)

    def problem(self, model: nn.Module) -> str | None:
        """Why the values of the additions are no valid state of this method, or None; called on saving and loading."""
        return None

    def trains(self, name: str) -> bool:
        """Whether a parameter of the base model is trained, by its name; the head always is."""
        return False

    def lr_factor(self, name: str) -> float:
        """The factor of the run's learning rate for a trained parameter, by its name."""
        return 1.0

    def objective(self, loss_of: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of (a slice of) a batch, in as many passes as the method needs.

        Args:
            loss_of: The task's loss.
            model: As the loss calls it, wrapped for several processes.
            batch: Of the task's examples.
        """
        return loss_of(model, batch)

    # The training loop calls the following hooks in every process with the unwrapped model; only `penalty` is called
    # under autograd.

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A term added once to the mean loss of each step, however many slices and processes share its batch."""

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Called after optimizer step `step`, from 1, of `steps` in all, while the gradients are still there.

        It must do the same in every process, so it uses no random numbers of its process.
        """

    def state(self, model: nn.Module) -> dict[str, Any]:
        """State that a checkpoint has to hold beside the trained parameters.

        Nested dicts and lists of tensors and plain values, all finite, with the same names, shapes and types at any
        time. Each selected epoch has its state.
        """
        return {}

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; its tensors may be on the CPU."""

    def loaded(self, layers: list[Adapted], of_base: bool) -> None:
        """Called after a state dict was loaded into an adapted model.

        Args:
            layers: Its adapted layers.
            of_base: Whether the state dict was that of the base model alone.
        """


def check_preset(name: str) -> None:
    """Refuse a name that no preset has.

    Raises:
        UserError: If there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; {hint(name, PRESETS)}")


def resolve_config(value: Method | Mapping[str, Any] | str, **changes: Any) -> Method:
    """A method from itself, from its settings, or from the name of a preset; `changes` replace its settings.

    Raises:
        UserError: If the preset is unknown, or a setting is.
    """
    if isinstance(value, str):
        check_preset(value)
        value = PRESETS[value]
    if isinstance(value, Method):
        return value.replace(**changes) if changes else value
    if isinstance(value, Mapping):
        return Method.from_dict({**value, **changes})
    raise UserError(
        f"capaboost is a {type(value).__name__}; give a CapaBoostConfig, a dict of its settings, or a preset name"
    )
