"""Inject a planned adapter into a model, undo it on errors, and count or group what is trained."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from capaboost_core.adapter_files.beside import SavesAdapter
from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, take_forward
from capaboost_core.liveness import (
    Watch,
    check_alive_by_example,
    check_reached,
    close_fast_paths,
    rest,
    statistics,
    wake,
)
from capaboost_core.methods import Method, resolve_config
from capaboost_core.plan import Plan, Roles, classifier_of, complete, in_prefix, linear_shape
from capaboost_core.sharing.masks import checksum
from capaboost_core.sharing.tied import MaskedCopyCache
from capaboost_core.wrappers import (
    check_bare,
    kind_if_no_floats,
    named_modules,
    named_parameters,
    swap,
    timm_cfg,
    unwrap,
)

INJECTION = "capaboost"  # attribute of an adapted model
ADAPTERS = "capaboost_adapters"  # attribute of a model with several adapters, see `named.py`
ACTIVE = "active adapter"  # a key of the metadata of such a model's state dict
MIXED = "capaboost_mixed_batch"  # attribute of a model in such a context
HOOKED = "capaboost_hooked"  # attribute of a model whose training loop calls the method's hooks


class UnhookedWarning(UserWarning):
    """A training loop does not call the method's hooks around each step."""


class FrozenHeadWarning(UserWarning):
    """A layer that may be a fresh classifier stays frozen."""


WITHOUT_INTEGRATION = Roles(
    missing="where the method goes depends on the architecture; use capaboost_vision.inject for timm models, "
    "capaboost_text.inject for transformers', or list module suffixes in targets, such as [attn.qkv, mlp.fc1]"
)


@dataclass(frozen=True)
class Injection:
    """The record that `inject` stores as `model.capaboost`."""

    config: Method
    plan: Plan
    base_model: str
    flags_set: tuple[tuple[str, str], ...] = ()  # the plan's required flags that were false before
    copy_cache: MaskedCopyCache | None = field(default=None, compare=False, repr=False)
    hooks: Sequence[RemovableHandle | Watch] = field(default=(), compare=False, repr=False)  # the others on the model
    statistics: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)  # of the base


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of trainable parameters without the head, of the head's, and of the base model's without its head."""

    trainable: int
    head: int
    total: int

    @property
    def percent(self) -> float:
        """Trainable share of the full model in percent, head not counted, as the paper's tables give it."""
        return 100 * self.trainable / self.total if self.total else 0.0


def inject(
    model: nn.Module,
    config: Method | Mapping[str, Any] | str,
    plan: Plan | None = None,
    trainable: Sequence[str] | None = None,
) -> nn.Module:
    """Adapt a model in place: swap the planned layers, and freeze everything but the additions and the head.

    Args:
        model: Any model; at initialisation its output stays as it is, except with method `prefix`.
        config: A configuration, a dict of its settings, or the name of a preset.
        plan: The layers to adapt, and the head that trains; without one, `config.targets` has to list module
            suffixes. A model of timm or transformers then runs once, to check that it calls these layers.
        trainable: Without a plan, the paths of modules that train besides, such as `("head",)`; None stands for the
            classifier that a model names by `get_classifier`, as timm's do, and for nothing in any other model, of
            which a `FrozenHeadWarning` then names the last linear layer, unless it is one of many, or an LM's.

    Raises:
        UserError: If nothing is to be adapted, a target is not a layer of the method's kind, or the model is wrapped
            or has been adapted before. The model is then as it was.
    """
    config = resolve_config(config)
    check_bare(model, ())
    planned = plan is not None
    if plan is None:
        plan = config.plan(model, replace(WITHOUT_INTEGRATION, head=_head_of(model, trainable)))
    injection, layers = Injection(config, plan, base_name(model)), build(model, config, plan)
    if planned:
        return attach(model, injection, layers)
    with undone_on_error(model, ()):
        check_alive_by_example(attach(model, injection, layers))
    if trainable is None and not plan.head and (last := _frozen_output(model)):
        warnings.warn(
            f"{last} stays frozen; pass trainable=[{last!r}] if it is a fresh classifier, else trainable=[]",
            FrozenHeadWarning,
            stacklevel=2,
        )
    return model


def _frozen_output(model: nn.Module) -> str | None:
    """The path of the last linear layer, if nothing of it trains and no other layer has its path but for numbers."""
    linear = {path: module for path, module in model.named_modules() if linear_shape(module)}
    path = next(reversed(linear), None)
    get_output = getattr(model, "get_output_embeddings", None)  # of transformers: the pretrained head of an LM
    if path is None or (get_output and get_output() is linear[path]):
        return None
    if any(parameter.requires_grad for parameter in linear[path].parameters()):
        return None
    alike = [other for other in linear if re.sub(r"\d+", "0", other) == re.sub(r"\d+", "0", path)]
    return path if len(alike) == 1 or not path.strip("0123456789") else None


def _head_of(model: nn.Module, trainable: Sequence[str] | None) -> tuple[str, ...]:
    if trainable is not None:
        modules = dict(model.named_modules())
        unknown = [path for path in trainable if path not in modules]
        if unknown:
            raise UserError(f"trainable: {type(model).__name__} has no module {unknown[0]!r}; give full paths")
        first = {id(p): name for name, p in named_parameters(model).items()}  # of tied ones
        for path in trainable:
            names = [first[id(p)] for p in modules[path].parameters()]
            if names and not any(in_prefix(name, listed) for name in names for listed in trainable):
                raise UserError(
                    f"trainable: {path} is tied to {names[0].rpartition('.')[0]}; list that, and both train"
                )
        return tuple(trainable)
    return classifier_of(model)


def build(model: nn.Module, config: Method, plan: Plan) -> dict[str, Adapted]:
    """Check everything and make the adapted layers by path; the model is not changed."""
    if find_injection(model):
        raise UserError("the model is adapted already; start from a fresh base model")
    check_bare(model, [target.path for target in plan.targets])
    complete()
    config.check(model, plan)
    modules = dict(model.named_modules())
    for name, parameter in _trained(model, config, plan).items():
        if kind := kind_if_no_floats(parameter):
            raise UserError(f"{name} is to train, but is {kind}; leave it out when you quantize the model")
    if any(not target.path for target in plan.targets):
        raise UserError(f"a target is the {type(model).__name__} itself; inject into a model that holds it")
    for path in (target.path for target in plan.targets if type(modules.get(target.path)) in config.layers):
        check_reached(model, path, modules[path])
    layers = config.make_layers(modules, plan)
    for path, layer in layers.items():
        take_forward(layer, modules[path])
    return layers


def attach(model: nn.Module, injection: Injection, layers: dict[str, Adapted]) -> nn.Module:
    """Set which parameters are trainable, and swap the built layers in."""
    trained = _trained(model, injection.config, injection.plan)
    for name, parameter in named_parameters(model).items():
        parameter.requires_grad_(name in trained)
    of_base = {name: buffer.detach().clone() for name, buffer in statistics(model).items()}
    return install(model, replace(injection, statistics=of_base), layers)


def install(model: nn.Module, injection: Injection, layers: dict[str, Adapted]) -> nn.Module:
    """Swap layers in, with the flags, hooks and attributes of an adapted model."""
    modules = named_modules(model)
    swap(model, {modules[path]: layer for path, layer in layers.items()})
    if layers:
        close_fast_paths(model, layers)
        off = [pair for pair in injection.plan.required_flags if not getattr(model.get_submodule(pair[0]), pair[1])]
        injection = replace(injection, flags_set=tuple(off))
        for path, attribute in off:
            setattr(model.get_submodule(path), attribute, True)
    tied = [weight for layer in layers.values() for weight in layer.tied_weights().values()]
    copy_cache = MaskedCopyCache(model, tied) if tied else None
    hooks = [*([Watch(model)] if layers else []), *_register_hooks(model, injection.config)]
    setattr(model, INJECTION, replace(injection, copy_cache=copy_cache, hooks=hooks))
    rest(model, injection.plan.head, injection.config.trains)
    if hasattr(type(model), "save_pretrained"):
        vars(model)["save_pretrained"] = SavesAdapter(model)
    return model


def remove_injection(model: nn.Module) -> nn.Module:
    """Undo `attach` apart from the layers: flags, hooks, attributes and fixed statistics."""
    injection = injection_of(model)
    for path, attribute in injection.flags_set:
        setattr(model.get_submodule(path), attribute, False)
    for hooks in filter(None, (injection.copy_cache, *injection.hooks)):
        hooks.remove()
    wake(model)
    for name in (INJECTION, HOOKED, "save_pretrained", ADAPTERS, "_apply"):
        vars(model).pop(name, None)
    return model


def _register_hooks(model: nn.Module, config: Method) -> list[RemovableHandle]:
    return [
        model.register_state_dict_post_hook(_note_draws),
        model.register_load_state_dict_pre_hook(_refuse_other_draws),
        model.register_load_state_dict_pre_hook(_accept_base_checkpoint),
        model.register_load_state_dict_post_hook(_after_load),
        *([model.register_forward_pre_hook(_warn_unhooked)] if config.is_hooked else []),
    ]


def _trained(model: nn.Module, config: Method, plan: Plan) -> dict[str, nn.Parameter]:
    """The parameters of the base model that are to train."""
    head = _head_parameters(model, plan)
    return {name: p for name, p in named_parameters(model).items() if name in head or config.trains(name)}


def adapted_layers(model: nn.Module) -> list[Adapted]:
    """The adapted layers in module order."""
    return [module for module in model.modules() if isinstance(module, Adapted)]


def own_parameters(layers: Iterable[Adapted]) -> dict[str, nn.Parameter]:
    """The parameters of the additions by name; a shared one has the name of its first layer."""
    named: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for layer in layers:
        for name, parameter in layer.own_parameters().items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                named[f"{layer.path}.{name}"] = parameter
    return named


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All trainable parameters by name, with those of the head, for an optimizer."""
    return {name: parameter for name, parameter in named_parameters(model).items() if parameter.requires_grad}


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count an adapted model's parameters. Neither merging nor freezing the head changes the counts.

    Raises:
        UserError: If the model has not been adapted.
    """
    head = _head_parameters(model, injection_of(model).plan)
    added = sum(p.numel() for p in own_parameters(adapted_layers(model)).values())
    trainable = sum(p.numel() for name, p in trainable_parameters(model).items() if name not in head)
    everything, of_head = (sum(p.numel() for p in ps) for ps in (model.parameters(), head.values()))
    return ParameterCounts(trainable, of_head, everything - added - of_head)


def mask_checksum(layers: list[Adapted]) -> str:
    """SHA-256 over all that the layers draw from a seed, their masks above all, keyed by module path and name."""
    return checksum((f"{layer.path}.{name}", values) for layer in layers for name, values in layer.drawn().items())


def injection_of(model: nn.Module) -> Injection:
    """The record that `inject` stored.

    Raises:
        UserError: If the model has not been adapted.
    """
    injection = find_injection(model)
    if injection is None:
        raise UserError("the model has no adapter; call inject(model, config) first")
    return injection


def find_injection(model: nn.Module) -> Injection | None:
    """The record that `inject` stored; None of a model that has not been adapted."""
    return getattr(unwrap(model), INJECTION, None)


def check_not_mixed(model: nn.Module) -> None:
    """Refuse a model in a `mixed_batch` context, which holds other layers.

    Raises:
        UserError: If it is in one.
    """
    if MIXED in vars(unwrap(model)):
        raise UserError("the model is in a mixed_batch context; leave it first")


def base_name(model: nn.Module) -> str:
    """The architecture's name in timm's `pretrained_cfg` or transformers' `config`, else the name of the class."""
    name = timm_cfg(model).get("architecture") or getattr(getattr(model, "config", None), "name_or_path", None)
    return name or type(model).__name__


def _head_parameters(model: nn.Module, plan: Plan) -> dict[str, nn.Parameter]:
    return {n: p for n, p in named_parameters(model).items() if any(in_prefix(n, prefix) for prefix in plan.head)}


def _note_draws(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """Add the settings that masks are drawn by, which no tensor holds, to the metadata of a state dict.

    The tensors of inactive adapters are added as well.

    Raises:
        UserError: If the model is in a mixed batch, whose layers have other names.
    """
    check_not_mixed(model)
    if find_injection(model):
        metadata["capaboost"] = _drawn_by(model)
    if adapters := vars(model).get(ADAPTERS):
        adapters.write_state(state, prefix)


def _refuse_other_draws(model: nn.Module, state: dict, prefix: str, metadata: dict, *_) -> None:
    """Refuse a state dict of other masks before it is loaded, if its metadata records how they were drawn.

    Inactive adapters take their tensors out of it.
    """
    there, here = metadata.get("capaboost"), _drawn_by(model)
    there = there if isinstance(there, dict) else {}  # safetensors and files of earlier versions have none
    if (active := there.get(ACTIVE)) and active != here.get(ACTIVE, active):
        raise UserError(f"the state dict is of a model whose adapter {active!r} is active; call set_adapter first")
    unequal = [key for key in here if key in there and there[key] != here[key]]
    if unequal and any(name.startswith(prefix) and name.endswith(".packed") for name in state):
        said = "; ".join(f"{key}: {there[key]} there, {here[key]} here" for key in unequal)
        raise UserError(f"the state dict is of a model with other masks ({said}); inject with its settings")
    if adapters := vars(model).get(ADAPTERS):
        adapters.read_state(state, prefix, metadata.get("assign_to_params_buffers", False))


def _drawn_by(model: nn.Module) -> dict[str, Any]:
    if (injection := find_injection(model)) is None:
        return {}
    adapters = vars(model).get(ADAPTERS)
    return mask_settings(injection) | (adapters.drawn_by() if adapters else {})


def mask_settings(injection: Injection) -> dict[str, Any]:
    """The settings that masks are drawn by."""
    settings = injection.config.to_dict()
    return {key: settings[key] for key in ("seed", "num_tied", "density", "mask", "n", "m") if key in settings}


def _warn_unhooked(model: nn.Module, _: Any) -> None:
    """Warn in the first training pass if no loop has announced that it calls the method's hooks."""
    training = model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if training and (injection := find_injection(model)) and not getattr(model, HOOKED, False):
        setattr(model, HOOKED, True)
        warnings.warn(
            f"{injection.config.method} does something at each training step (an additional loss, a penalty, "
            "moving ranks or learning rates) that this loop does not call; train with the commands, or call the hooks "
            "of capaboost_core.task.Hooks(model), made before the first step",
            UnhookedWarning,
            stacklevel=2,
        )


def _accept_base_checkpoint(model: nn.Module, state: dict, prefix: str, *_) -> None:
    """Let a checkpoint of the base load strictly: it may lack all parameters of the adapter, and nothing else."""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, Adapted)}
    own = {f"{prefix}{path}.{name}": p for path, layer in layers.items() for name, p in layer.own_parameters().items()}
    of_base = bool(own) and not own.keys() & state.keys()
    for layer in layers.values():
        layer.lacked = of_base
    if of_base:
        state.update({name: parameter.detach() for name, parameter in own.items()})


def _after_load(model: nn.Module, _: Any) -> None:
    """Let additions that are computed from the frozen weights follow those that were loaded."""
    if layers := adapted_layers(model):
        injection_of(model).config.loaded(layers, of_base=layers[0].lacked)


def weight_decay_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, decay_biases: bool = False
) -> list[dict[str, Any]]:
    """Two groups for an optimizer: matrices, packed or not, decay; biases and norms only with `decay_biases`.

    timm's optimizers make the same groups. transformers' `Trainer` does not decay what lies within a norm, such as the
    matrices of a PAdapter in an encoder that norms after the sum; give it these groups:

        optimizer = torch.optim.AdamW(weight_decay_groups(trainable_parameters(model).values(), 0.01), lr=1e-3)
        trainer = Trainer(model, arguments, optimizers=(optimizer, None))
    """
    parameters = list(parameters)
    spared = [p for p in parameters if p.ndim <= 1 and not decay_biases]
    decayed = [p for p in parameters if p.ndim > 1 or decay_biases]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@contextmanager
def undone_on_error(model: nn.Module, written: Iterable[Tensor]) -> Iterator[None]:
    """Within the context the model may change; an error restores it, down to its hooks and attributes.

    Args:
        model: The model that changes.
        written: The parameters and buffers whose values change; they are copied on entry.
    """
    modules = [(module, _contents(module)) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    values = [(parameter, parameter.detach().clone()) for parameter in written]
    try:
        yield
    except BaseException:
        for module, (contents, containers) in modules:
            vars(module).clear()
            vars(module).update(contents)
            for container, content in containers:
                container.clear()
                container.update(content)
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        raise


def _contents(module: nn.Module) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """The attributes of a module, and its containers with copies.

    Containers of parameters, children and hooks must stay the same objects, to which the handles of hooks refer.
    """
    attributes = dict(vars(module))
    return attributes, [(value, value.copy()) for value in attributes.values() if isinstance(value, (dict, set))]
