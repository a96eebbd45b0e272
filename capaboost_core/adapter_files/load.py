"""Load an adapter into its base model: check everything, then change the model atomically."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capaboost_core.account import parts, persistent_buffers
from capaboost_core.adapter_files.base_model import DifferentBaseWarning, differing, same_name
from capaboost_core.adapter_files.disk import WEIGHTS, Adapter, Limits, config_path, read_adapter
from capaboost_core.adapter_files.save import check_complete, check_finite, check_not_meta, check_sound
from capaboost_core.errors import UserError
from capaboost_core.injection import (
    Injection,
    adapted_layers,
    attach,
    base_name,
    build,
    find_injection,
    mask_checksum,
    own_parameters,
    undone_on_error,
)
from capaboost_core.layers import Adapted, Mergeable
from capaboost_core.named import another, check_name, name_adapters
from capaboost_core.plan import Plan
from capaboost_core.wrappers import copy_full, is_sharded, unwrap

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_adapted(model: nn.Module, here: Injection, adapter: Adapter) -> None:
    """Refuse an adapted model with another configuration than the adapter's."""
    _check_name(model, adapter)
    record = adapter.record
    if (here.config, Plan.from_dict(here.plan.to_dict())) != (record.config, record.plan):
        mine, theirs = here.config.to_dict(), record.config.to_dict()
        unequal = [f"{key}: {theirs[key]} there, {mine[key]} here" for key in mine if mine[key] != theirs[key]]
        raise UserError(
            f"{adapter.folder} has another configuration ({'; '.join(unequal) or 'targets'}); load into a fresh base "
            "model"
        )
    check_not_meta(model)
    if any(isinstance(layer, Mergeable) and layer.merged for layer in adapted_layers(model)):
        raise UserError("the model is merged; call unmerge(model) before load_adapter")
    check_complete(model, here, adapted_layers(model))


def check_base(model: nn.Module, adapter: Adapter) -> None:
    """Refuse a base model, perhaps in a wrapper, that cannot take the adapter."""
    bare = unwrap(model)
    parallel = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    if parallel or any(map(is_sharded, bare.parameters())):
        raise UserError("the model is parallel already and would not train the adapter; load it before wrapping")
    _check_name(bare, adapter)
    check_not_meta(bare)
    try:
        adapter.record.plan.check(bare)
    except UserError as error:
        raise UserError(f"{config_path(adapter.folder)}: {error}") from error


def check_intact(adapter: Adapter) -> None:
    """Refuse a record whose checksum does not match its content, before anything is made from it."""
    if not adapter.record.intact:
        raise UserError(
            f"{config_path(adapter.folder)} was changed after it was written; copy it again (if you changed it on "
            "purpose, delete checksum from it)"
        )


def check_masks(adapter: Adapter, layers: dict[str, Adapted]) -> None:
    if mask_checksum(list(layers.values())) != adapter.record.mask_checksum:
        raise UserError(
            f"{adapter.folder}: the masks or projections made from its seed differ from those it was trained with; it "
            "is damaged, or needs the versions of torch and peft that it was made with"
        )


def check_weights(model: nn.Module, adapter: Adapter, saved: Collection[str]) -> None:
    """Warn of frozen weights that the adapter was not trained on, or refuse them if the names differ as well."""
    record, name = adapter.record, _base_name(model)
    others = differing(model, saved, record.fingerprint) if record.fingerprint else []
    if not same_name(record.base_model, name) and (others or not record.fingerprint):
        raise _other_base(adapter, name)
    if others:
        warnings.warn(
            f"{adapter.folder} was trained on other weights of {record.base_model}: {len(others)} frozen tensors "
            f"differ, such as {others[0]}; load those weights for the results of its training",
            DifferentBaseWarning,
            stacklevel=4,
        )


def _check_name(model: nn.Module, adapter: Adapter) -> None:
    if same_name(adapter.record.base_model, name := _base_name(model)) is False:
        raise _other_base(adapter, name)


def _other_base(adapter: Adapter, name: str) -> UserError:
    trained_on = " ".join(adapter.record.base_model.split())
    return UserError(f"{adapter.folder} was trained on {trained_on}, but the model is {name}; load that one")


def _base_name(model: nn.Module) -> str:
    injection = find_injection(model)
    return injection.base_model if injection else base_name(model)


def load_adapter(model: nn.Module, folder: str | Path, name: str | None = None, replace: bool = False) -> nn.Module:
    """Load an adapter into its base model, into a model adapted with the same configuration, or beside its adapters.

    Everything is checked first, and later failures are rolled back: on an error the model is unchanged. All that was
    saved is trainable afterwards. Frozen weights other than those that the adapter was trained on give a warning.

    Args:
        model: A base model or an adapted one.
        folder: What `save_adapter` wrote.
        name: Without one the values go into the active adapter, whose configuration must be the same; the first one
            of a base model becomes `default`. With one an adapted model gets a further adapter of any configuration,
            method and targets, which `set_adapter(model, name)` makes active.
        replace: Whether it may take the place of an adapter of that name.

    Returns:
        The given model, with its wrappers.

    Raises:
        UserError: If a file is missing, damaged or foreign, or belongs to another base model, configuration, head
            size or set of masks. With a name: if the model has an adapter of that name that is not to be replaced, is
            merged, sharded or in a `disable` context, or the file holds other parts of the model than its adapters do.
    """
    if name is not None:
        check_name(name)
    bare = unwrap(model)
    if name is None or not find_injection(bare):
        _load(model, folder)
        if name is not None:
            name_adapters(bare, name, {name: None})
        return model
    with another(model, name, replace) as names:
        _load(bare, folder, names)
    return model


def _load(model: nn.Module, folder: str | Path, names: Collection[str] | None = None) -> None:
    """Load an adapter, which with `names` must hold these tensors of the model beside its additions."""
    bare = unwrap(model)
    adapter = read_adapter(Path(folder), Limits.of(bare))
    record, adapted = adapter.record, find_injection(bare)
    injection = Injection(record.config, record.plan, record.base_model)
    check_intact(adapter)
    if adapted:
        check_adapted(bare, adapted, adapter)
    else:
        check_base(model, adapter)
    layers = {layer.path: layer for layer in adapted_layers(bare)} if adapted else _build(bare, injection, adapter)
    check_masks(adapter, layers)
    planned, other = parts(bare, injection, list(layers.values()))
    further = other | persistent_buffers(bare)
    extra = {name: further[name] for name in _extra(adapter, further)}
    parameters = planned | extra
    if names is not None:
        _check_shared(adapter, {*names}, parameters.keys() - own_parameters(layers.values()).keys())
    tensors = _fitting(adapter, parameters)
    check_weights(bare, adapter, parameters)
    present = {id(tensor) for tensor in (*bare.parameters(), *bare.buffers())}
    with undone_on_error(bare, [tensor for tensor in parameters.values() if id(tensor) in present]):
        if not adapted:
            attach(bare, injection, layers)
        for name, parameter in parameters.items():
            copy_full(parameter, tensors[name])
        for tensor in extra.values():
            tensor.requires_grad_(isinstance(tensor, nn.Parameter))
        check_sound(bare, injection)


def _check_shared(adapter: Adapter, expected: set[str], found: set[str]) -> None:
    if other := sorted(expected ^ found):
        verb = "lacks" if other[0] in expected else "holds"
        raise UserError(
            f"{adapter.folder} {verb} {other[0]}, unlike the model's adapters; "
            "adapters of one model share all but their additions and equal heads: load it into a model of its own"
        )


def _build(model: nn.Module, injection: Injection, adapter: Adapter) -> dict[str, Adapted]:
    _check_size(model, injection, adapter)
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    try:
        # The initial values are overwritten, so the caller's random numbers must not change.
        with torch.random.fork_rng(devices):  # pyright: ignore[reportUnknownMemberType] (torch declares no types)
            return build(model, injection.config, injection.plan)
    except UserError:
        raise
    except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{adapter.folder}: its layers cannot be made ({type(error).__name__}); it is damaged"
        ) from error


def _check_size(model: nn.Module, injection: Injection, adapter: Adapter) -> None:
    """Refuse a damaged r, which could fill the memory, by comparing it with the stored entries.

    The file holds a known share of the weights with r rows. That share is small for sparse masks and for projections
    from a seed. So with r above twice the largest rank of the model's matrices (and above 512), a projection may have
    as many entries as the model (or 2^24), and a mask a sixteenth of that (or 2^22).
    """
    paths = tuple(f"{target.path}." for target in injection.plan.targets)
    size, share = injection.config.size, injection.config.stored_share
    matrices = [p for p in model.parameters() if p.dim() > 1 and p.numel()]
    rank = max((min(len(p), p.numel() // len(p)) for p in matrices), default=0)
    entries = sum(parameter.numel() for parameter in model.parameters())
    most = max(entries, 2**24) if share == 1 else max(entries // 16, 2**22)
    stored = max((tensor.numel() for name, tensor in adapter.tensors.items() if name.startswith(paths)), default=0)
    too_large = size > max(512, 2 * rank) and size * rank > most
    if paths and share and (too_large or size * share > stored + 1):
        raise UserError(f"{adapter.folder} is damaged: {WEIGHTS} holds less of {paths[0][:-1]} than its config says")


def _extra(adapter: Adapter, other: dict[str, Tensor]) -> tuple[str, ...]:
    """Names of the further parameters and buffers: of the record, or in older files of the weights."""
    if adapter.record.extra is None:
        return tuple(name for name in adapter.tensors if name in other)
    for name in adapter.record.extra:
        if name not in other:
            raise UserError(f"{config_path(adapter.folder)}: the model has no {name!r}, which extra names")
    return adapter.record.extra


def _fitting(adapter: Adapter, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stored tensors, each with the shape and precision of its parameter."""
    path, tensors = adapter.folder / WEIGHTS, adapter.tensors
    for name in sorted(tensors.keys() ^ parameters.keys()):
        where = "lacks" if name in parameters else "has besides"
        raise UserError(f"{path} {where} {name}; it belongs to another model")
    fitting: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensor, shape = tensors[name], parameter.shape
        if tensor.dtype not in (FLOATING if parameter.is_floating_point() else (parameter.dtype,)):
            wanted = "floating values" if parameter.is_floating_point() else "the integers that it was trained with"
            raise UserError(f"{path}: {name} is {tensor.dtype}; save the adapter with {wanted}")
        if name.endswith(".packed") and max(tensor.shape, default=0) == tensor.numel() == shape.numel():
            tensor = tensor.reshape(shape)  # a list of entries is stored as (n,) or (n, 1)
        if tensor.shape != shape:
            raise UserError(
                f"{path}: {name} is {tuple(tensor.shape)}, the model's is {tuple(shape)}; create the model with the "
                "same num_classes"
            )
        fitting[name] = tensor.to(parameter.dtype)
        check_finite(f"{path}: {name}", fitting[name], "save a sound adapter again")
    return fitting
