"""Several adapters of one model by name: one is active, the others are kept beside the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capaboost_core.account import account_of, persistent_buffers
from capaboost_core.errors import UserError
from capaboost_core.injection import (
    ACTIVE,
    ADAPTERS,
    Injection,
    adapted_layers,
    check_not_mixed,
    injection_of,
    install,
    mask_settings,
    own_parameters,
    remove_injection,
    undone_on_error,
)
from capaboost_core.layers import Adapted
from capaboost_core.settings import hint
from capaboost_core.wrappers import is_sharded, named_modules, named_parameters, swap, unwrap

DEFAULT = "default"  # the name of an adapter that was given none, as in peft


class Inactive(nn.Module):
    """An adapter that its model does not run: layers without what they hold of the base, and tensors of the head.

    They are children under their paths in the model with `/` for the dots, which no name of a child may have.
    """

    def __init__(self, injection: Injection, layers: list[Adapted], head: Mapping[str, Tensor]):
        super().__init__()
        self.injection = replace(injection, copy_cache=None, hooks=())
        self.additions, self.beside = nn.Module(), nn.Module()
        for layer in layers:
            layer.release()
            self.additions.add_module(layer.path.replace(".", "/"), layer)
        for name, tensor in head.items():
            path, _, attribute = name.rpartition(".")
            holder = self.beside._modules.setdefault(path.replace(".", "/"), nn.Module()) if path else self.beside
            kind = "_parameters" if isinstance(tensor, nn.Parameter) else "_buffers"
            vars(holder)[kind][attribute] = tensor

    def __repr__(self) -> str:
        return f"Inactive({self.injection.config!r})"  # its layers lack what they would show of the base

    @property
    def layers(self) -> dict[str, Any]:
        return {layer.path: layer for layer in self.additions._modules.values() if isinstance(layer, Adapted)}

    @property
    def head(self) -> dict[str, Tensor]:
        tensors = {**dict(self.beside.named_parameters()), **dict(self.beside.named_buffers())}
        return {name.replace("/", "."): tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Adapters:
    """The record of a model whose adapters have names; one with an adapter `default` alone has none.

    It is no module, so whatever asks the model for modules or parameters finds the active adapter alone.

    Attributes:
        active: The name of the adapter that the model runs.
        adapters: All in the order in which they were loaded; None stands for the active one.
    """

    active: str
    adapters: Mapping[str, Inactive | None]

    def __getattr__(self, name: str) -> Inactive:
        """An inactive adapter by name, as torch.distributed.checkpoint follows the keys of a state dict."""
        adapter = vars(self).get("adapters", {}).get(name)
        if adapter is None:
            raise AttributeError(name)
        return adapter

    @property
    def inactive(self) -> dict[str, Inactive]:
        return {name: adapter for name, adapter in self.adapters.items() if adapter is not None}

    def inactive_named(self, name: str) -> Inactive:
        """One that is not active.

        Raises:
            UserError: If there is no adapter of that name.
        """
        if name not in self.adapters:
            raise UserError(f"the model has no adapter {name!r}; {hint(name, self.adapters)}")
        return self.inactive[name]

    def drawn_by(self) -> dict[str, Any]:
        """For the metadata of a state dict: which adapter is active, and what the masks of the others are drawn by."""
        return {ACTIVE: self.active} | {
            f"adapter {name}": mask_settings(adapter.injection) for name, adapter in self.inactive.items()
        }

    def state(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of the inactive adapters by their names in the state dict of the model."""
        named = {name: adapter.state_dict() for name, adapter in self.inactive.items()}
        return {f"{prefix}{ADAPTERS}.{name}.{key}": t for name, state in named.items() for key, t in state.items()}

    def write_state(self, state: dict[str, Any], prefix: str) -> None:
        """Add the inactive adapters to a state dict."""
        state.update(self.state(prefix))

    def read_state(self, state: dict[str, Any], prefix: str, assign: bool) -> None:
        """Take the inactive adapters out of a state dict; one without any leaves them as they are.

        Raises:
            UserError: If it holds others. Nothing was loaded then.
        """
        given = {key: state.pop(key) for key in list(state) if key.startswith(f"{prefix}{ADAPTERS}.")}
        own = self.state(prefix)
        for key in sorted(given.keys() ^ own.keys()) if given else ():
            raise UserError(f"the state dict {'lacks' if key in own else 'has'} {key}; load and set the same adapters")
        for key, tensor in given.items():
            if tensor.shape != own[key].shape:
                raise UserError(f"{key} is {tuple(tensor.shape)}, the model's is {tuple(own[key].shape)}")
        for name, adapter in self.inactive.items() if given else ():
            start = f"{prefix}{ADAPTERS}.{name}."
            of_adapter = {key.removeprefix(start): t for key, t in given.items() if key.startswith(start)}
            adapter.load_state_dict(of_adapter, assign=assign)


class Moves:
    """`_apply` of a model, by which `.to`, `.half` or `to_empty` move it: the inactive adapters move along.

    It is set on the instance, as a child module of a model, such as an `nn.Sequential`, could be part of its forward.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        type(self.model)._apply(self.model, fn, recurse)
        for adapter in vars(self.model)[ADAPTERS].inactive.values() if recurse else ():
            adapter._apply(fn)
        return self.model


def adapters_of(model: nn.Module) -> Adapters:
    """The record of an adapted model.

    Raises:
        UserError: If the model has no adapter.
    """
    model = unwrap(model)
    injection_of(model)
    return vars(model).get(ADAPTERS) or Adapters(DEFAULT, {DEFAULT: None})


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's adapters in the order in which they were loaded; that of `inject` is `default`.

    Raises:
        UserError: If the model has no adapter.
    """
    return tuple(adapters_of(model).adapters)


def active_adapter(model: nn.Module) -> str:
    """The name of the adapter that the model runs.

    Raises:
        UserError: If the model has no adapter.
    """
    return adapters_of(model).active


def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Make a model run another of its adapters, with that one's head.

    The model's modules and parameters are then those of this adapter, down to their `requires_grad`: an optimizer made
    from `trainable_parameters(model)` trains it alone, and one made before goes on with the other one once that is
    set again.

    Raises:
        UserError: If there is no adapter of that name, or the model is merged, sharded, or in a `disable` or
            `mixed_batch` context. The model is then as it was.
    """
    bare, here = unwrap(model), adapters_of(model)
    if name == here.active:
        return model
    target = here.inactive_named(name)
    check_switchable(model)
    names = _head_names(bare, target.head)
    with undone_on_error(bare, ()):
        parked = _park(bare, names)
        _activate(bare, target)
        name_adapters(bare, name, {**here.adapters, here.active: parked, name: None})
    return model


def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Drop an adapter that is not active.

    Raises:
        UserError: If there is no adapter of that name, or it is active.
    """
    check_not_mixed(model)
    here = adapters_of(model)
    if name == here.active:
        raise UserError(f"adapter {name!r} is active; set_adapter(model, ...) to another one first, or unload(model)")
    here.inactive_named(name)
    rest = {other: adapter for other, adapter in here.adapters.items() if other != name}
    name_adapters(unwrap(model), here.active, rest)
    return model


@contextmanager
def activated(model: nn.Module, name: str) -> Iterator[None]:
    """Within the context an adapter is active."""
    before = active_adapter(model)
    set_adapter(model, name)
    try:
        yield
    finally:
        set_adapter(model, before)


def check_name(name: str) -> None:
    if not isinstance(name, str) or not name or "." in name or name in dir(Adapters(DEFAULT, {})):
        raise UserError(f"{name!r} cannot name an adapter, as keys of a state dict hold the name; type another word")


@contextmanager
def another(model: nn.Module, name: str, replaced: bool) -> Iterator[Collection[str]]:
    """Within the context an adapted model is its base, to be adapted again; that adapter gets a name and is set aside.

    Args:
        model: The model; it is as it was after an error.
        name: The adapter's.
        replaced: Whether it takes the place of one of that name.

    Yields:
        Names of the tensors beside its additions that each adapter of the model trains and saves.

    Raises:
        UserError: If there is one of that name and it is not to be replaced, or the model cannot take one now.
    """
    bare, here = unwrap(model), adapters_of(model)
    if name in here.adapters and not replaced:
        raise UserError(f"the model has an adapter {name!r}; give another name, or replace=True to drop that one")
    check_switchable(model)
    some = next(iter(here.inactive.values()), None)
    names = _head_names(bare, some and some.head)
    with undone_on_error(bare, ()):
        parked = _park(bare, names)
        _exchange(bare, {key: _copied(tensor) for key, tensor in parked.head.items()})
        yield names
        statistics = parked.injection.statistics  # the model's are those of the adapter before
        loaded: Inactive | None = None
        if name != here.active:
            loaded = _park(bare, names)
            loaded.injection = replace(loaded.injection, statistics=statistics)
            _activate(bare, parked)
        name_adapters(bare, here.active, {**here.adapters, name: loaded})


def name_adapters(model: nn.Module, active: str, adapters: Mapping[str, Inactive | None]) -> None:
    """Record the adapters of a bare model."""
    for attribute in (ADAPTERS, "_apply"):
        vars(model).pop(attribute, None)
    if adapters.keys() != {DEFAULT}:
        vars(model).update({ADAPTERS: Adapters(active, adapters), "_apply": Moves(model)})


def check_switchable(model: nn.Module) -> None:
    """Refuse a model whose layers cannot be exchanged now.

    Raises:
        UserError: If it is merged, disabled, in a mixed batch, or parallel in a way that knows its parameters.
    """
    bare = unwrap(model)
    layers = adapted_layers(bare)
    parallel = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    if parallel or any(map(is_sharded, bare.parameters())):
        raise UserError(
            "the model is parallel and knows the active adapter alone; load and set adapters before wrapping"
        )
    check_not_mixed(bare)
    if any(layer.contexts for layer in layers):
        raise UserError("the model is in a disable context; leave it first")
    if any(getattr(layer, "merged", False) for layer in layers):
        raise UserError("the model is merged; call unmerge(model) first")


def _head_names(model: nn.Module, shared: Mapping[str, Any] | None) -> Collection[str]:
    """Names of what the active adapter trains or saves beside its additions: the head, above all.

    Args:
        model: The bare model.
        shared: Those names of the other adapters, if there are others.

    Raises:
        UserError: If it trains more than the others, so that those would run with what it has trained.
    """
    own = own_parameters(adapted_layers(model))
    names = [name for name in account_of(model).everything if name not in own]
    if shared is not None and (more := sorted(set(names) - shared.keys())):
        raise UserError(
            f"{more[0]} trains with the active adapter and is shared with the others; freeze it, or save_adapter and "
            "load that into a model of its own"
        )
    return names if shared is None else shared.keys()


def _park(model: nn.Module, names: Collection[str]) -> Inactive:
    """Take the active adapter out of a bare model, with the named tensors, which the model goes on to hold as well."""
    injection, layers = injection_of(model), adapted_layers(model)
    swap(model, {layer: layer.plain() for layer in layers})
    remove_injection(model)
    tensors = _tensors(model)
    return Inactive(injection, layers, {name: tensors[name] for name in names})


def _activate(model: nn.Module, adapter: Inactive) -> None:
    """Put an adapter into its bare base model."""
    _exchange(model, adapter.head)
    modules = named_modules(model)
    try:
        for path, layer in adapter.layers.items():
            layer.hold(modules[path])
        install(model, adapter.injection, adapter.layers)
    except BaseException:
        for layer in adapter.layers.values():
            layer.release()
        raise


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return named_parameters(model) | persistent_buffers(model)


def holders(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[nn.Module, dict[str, Tensor]]:
    """The modules that hold parameters or buffers of these names, tied ones too, each with the given tensors."""
    held = _tensors(model)
    by_id = {id(held[name]): tensor for name, tensor in tensors.items()}
    found = {m: {**m._parameters, **m._buffers} for m in model.modules()}
    pairs = {m: {key: by_id[id(t)] for key, t in of_m.items() if id(t) in by_id} for m, of_m in found.items()}
    return {module: of_module for module, of_module in pairs.items() if of_module}


def _exchange(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by name, at every module that holds them."""
    for module, of_module in holders(model, tensors).items():
        for kind in ("_parameters", "_buffers"):
            content = vars(module)[kind]
            content.update({key: tensor for key, tensor in of_module.items() if key in content})


def _copied(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
