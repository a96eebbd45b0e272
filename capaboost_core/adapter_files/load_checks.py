"""What holds between an adapter file and the model that it is loaded into."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from capaboost_core.adapted import Adapted
from capaboost_core.adapter_files.base_model import DifferentBaseWarning, differing, same_name
from capaboost_core.adapter_files.disk import CONFIG, Adapter
from capaboost_core.adapter_files.save import check_complete, check_not_meta
from capaboost_core.errors import UserError
from capaboost_core.injection import adapted_layers, base_name, mask_checksum
from capaboost_core.plan import Plan
from capaboost_core.wrappers import is_sharded, unwrap


def check_adapted(model: nn.Module, adapter: Adapter) -> None:
    """Refuse an adapted model that is not what the adapter was saved from."""
    _check_name(model, adapter)
    here, record = model.capaboost, adapter.record
    if (here.config, Plan.from_dict(here.plan.to_dict())) != (record.config, record.plan):
        mine, theirs = here.config.to_dict(), record.config.to_dict()
        unequal = [f"{key}: {theirs[key]} there, {mine[key]} here" for key in mine if mine[key] != theirs[key]]
        raise UserError(
            f"{adapter.folder} has another configuration ({'; '.join(unequal) or 'targets'}); load into a fresh base "
            "model"
        )
    check_not_meta(model)
    if any(getattr(layer, "merged", False) for layer in adapted_layers(model)):
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
        raise UserError(f"{adapter.folder / CONFIG}: {error}") from error


def check_intact(adapter: Adapter) -> None:
    """Refuse a record that does not have the checksum that it was written with, before anything is made from it."""
    if not adapter.record.intact:
        raise UserError(
            f"{adapter.folder / CONFIG} was changed after it was written; copy it again (if you changed it on "
            "purpose, delete checksum from it)"
        )


def check_masks(adapter: Adapter, layers: dict[str, Adapted]) -> None:
    if mask_checksum(list(layers.values())) != adapter.record.mask_checksum:
        raise UserError(
            f"{adapter.folder}: the masks or projections made from its seed differ from those it was trained with; it "
            "is damaged, or needs the versions of torch and peft that it was made with"
        )


def check_weights(model: nn.Module, adapter: Adapter, saved: Collection[str]) -> None:
    """Warn of frozen weights that the adapter was not trained on; without a common name they must be the same."""
    record, name = adapter.record, _base_name(model)
    known = record.fingerprint is not None
    others = differing(model, saved, record.fingerprint) if known else []
    if not same_name(record.base_model, name) and (others or not known):
        raise _other_base(adapter, name)
    if others:
        warnings.warn(
            f"{adapter.folder} was trained on other weights of {record.base_model}: {len(others)} frozen tensors "
            f"differ, such as {others[0]}; load those weights for the results of its training",
            DifferentBaseWarning,
            stacklevel=3,
        )


def _check_name(model: nn.Module, adapter: Adapter) -> None:
    if same_name(adapter.record.base_model, name := _base_name(model)) is False:
        raise _other_base(adapter, name)


def _other_base(adapter: Adapter, name: str) -> UserError:
    trained_on = " ".join(adapter.record.base_model.split())
    return UserError(f"{adapter.folder} was trained on {trained_on}, but the model is {name}; load that one")


def _base_name(model: nn.Module) -> str:
    return model.capaboost.base_model if hasattr(model, "capaboost") else base_name(model)
