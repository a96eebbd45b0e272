"""Save an adapted model's trained tensors, and the checks that saving and loading share."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, distributed, nn

from capaboost_core.account import account_of
from capaboost_core.adapter_files.base_model import fingerprint
from capaboost_core.adapter_files.disk import CONFIG, WEIGHTS, write_adapter
from capaboost_core.adapter_files.record import FORMAT, Record
from capaboost_core.errors import UserError
from capaboost_core.injection import Injection, adapted_layers, check_not_mixed, injection_of, mask_checksum
from capaboost_core.layers import Adapted
from capaboost_core.named import activated
from capaboost_core.wrappers import gather_full, is_partitioned, is_sharded, named_modules, unwrap

__all__ = ["CONFIG", "FORMAT", "WEIGHTS", "save_adapter"]


def save_adapter(model: nn.Module, folder: str | Path, name: str | None = None) -> Path:
    """Write `adapter.safetensors` and `capaboost_config.json`.

    The first holds the additions, the head and all else that trains, each parameter under its name in the bare model
    and even if it is frozen at the moment, and the running statistics that training changes; for method `full` every
    parameter. The second holds the configuration, the plan, the base model's name and a fingerprint of its frozen
    weights, and checksums. Masks are not stored. Equal adapters give equal files.

    After a kill at any moment the folder holds the previous adapter or the new one. The model may be compiled,
    parallel or averaged. If its parameters are sharded (FSDP2), all processes must call this together: they gather the
    values, the first one writes, and then all return or raise.

    Args:
        model: An adapted model.
        folder: Where to write.
        name: Of the adapter; without one the active adapter. One that is not active must be one that `set_adapter`
            could make active now.

    Returns:
        The folder.

    Raises:
        UserError: If the model has no adapter or only a part of it, a value is not finite or partitioned by DeepSpeed,
            or the folder cannot be written. Nothing is written then.
    """
    if name is not None:
        with activated(model, name):
            return save_adapter(model, folder)
    check_not_mixed(model)
    model, folder = unwrap(model), Path(folder)
    injection, layers = injection_of(model), adapted_layers(model)
    check_complete(model, injection, layers)
    check_not_meta(model)
    _check_gathered(model)
    check_sound(model, injection)
    account = account_of(model)
    tensors = values_of(model, account.everything)
    record = Record(
        base_model=injection.base_model,
        config=injection.config,
        plan=injection.plan,
        mask_checksum=mask_checksum(layers),
        extra=tuple(account.further),
        fingerprint=fingerprint(model, account.everything),
    )
    if any(map(is_sharded, model.parameters())):
        _write_once(folder, record, tensors)
    else:
        write_adapter(folder, record, tensors)
    return folder


def check_complete(model: nn.Module, injection: Injection, layers: list[Adapted]) -> None:
    """Refuse to save an incomplete adapter."""
    wanted = {target.path for target in injection.plan.targets if injection.config.layers}
    found = {path for path, module in named_modules(model).items() if isinstance(module, Adapted)}
    for path in sorted((wanted ^ found) | (wanted ^ {layer.path for layer in layers})):
        raise UserError(f"{path} is not as inject left it; save the model that inject returned, with all its layers")


def check_sound(model: nn.Module, injection: Injection) -> None:
    problem = injection.config.problem(model) if injection.plan.targets else None
    if problem:
        raise UserError(f"{injection.config.method}: {problem}")


def check_not_meta(model: nn.Module) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError("the model is on the meta device and has no values; call to_empty and load its weights first")


def _check_gathered(model: nn.Module) -> None:
    if any(map(is_partitioned, model.parameters())):
        raise UserError(
            "DeepSpeed has partitioned the weights; save within deepspeed.zero.GatheredParameters(model.parameters())"
        )


def check_finite(name: str, tensor: Tensor, advice: str) -> None:
    if not tensor.isfinite().all():
        raise UserError(f"{name} holds values that are not finite; {advice}")


def values_of(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The complete values to save, on the CPU; an error if there are none, or one is not finite."""
    if not tensors:
        raise UserError("the model has nothing that is trained; its head or its layers were removed after inject")
    check_not_meta(model)
    tensors = {name: gather_full(tensor).cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        check_finite(name, tensor, "nothing was saved; go back to values from before the training diverged")
    return tensors


def _write_once(folder: Path, record: Record, tensors: dict[str, Tensor]) -> None:
    """Write on the first process; all processes return or raise together."""
    failure: list[str | None] = [None]
    if distributed.get_rank() == 0:
        try:
            write_adapter(folder, record, tensors)
        except UserError as error:
            failure = [str(error)]
    distributed.broadcast_object_list(failure)
    if failure[0]:
        raise UserError(failure[0])
