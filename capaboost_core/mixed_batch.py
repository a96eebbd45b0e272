"""Batches whose rows take different adapters of one model."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from capaboost_core.errors import UserError
from capaboost_core.injection import MIXED, adapted_layers
from capaboost_core.layers import Adapted, own_forward, take_forward
from capaboost_core.named import Inactive, adapters_of, check_switchable, holders
from capaboost_core.wrappers import named_modules, unwrap


class Rows(nn.Module):
    """In the place of a layer, forms of it that each compute some rows of its input.

    Args:
        path: Of the layer.
        current: The layer.
        forms: What computes each row.
    """

    def __init__(self, path: str, current: nn.Module, forms: Sequence[nn.Module]):
        super().__init__()
        self.path, self.current, self.number, self.thread = path, current, len(forms), threading.get_ident()
        self.forms = nn.ModuleList(dict.fromkeys(forms))
        self.rows = [[row for row, of_row in enumerate(forms) if of_row is form] for form in self.forms]
        self.training = current.training

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, ...) or, from 3 dimensions on, (rows * n, ...) with n windows or beams of each row together.

        Raises:
            UserError: If the input has another number of rows, or comes from another thread.
        """
        if not torch.compiler.is_compiling() and threading.get_ident() != self.thread:
            raise UserError("mixed_batch holds for the thread that enters it; give each thread a model of its own")
        if len(self.forms) == 1:
            return self.forms[0](x)
        if len(x) != self.number and (x.ndim < 3 or not len(x) or len(x) % self.number):
            raise UserError(
                f"{self.path} gets an input of shape {tuple(x.shape)} for {self.number} rows; mixed_batch is for "
                "models that keep rows in the first dimension: run a forward pass for each adapter"
            )
        by_row, out = x.unflatten(0, (self.number, -1)), None
        for form, rows in zip(self.forms, self.rows, strict=True):
            part = form(by_row[rows].flatten(0, 1)).unflatten(0, (len(rows), -1))
            out = part.new_empty(self.number, *part.shape[1:]) if out is None else out
            out[rows] = part
        assert out is not None, "mixed_batch refuses an empty list"
        return out.flatten(0, 1)

    def __getattr__(self, name: str) -> Any:
        """What a model reads of the layer besides, such as the dtype of its weight.

        Raises:
            UserError: If it is a tensor of which rows have values of their own.
        """
        modules = vars(self).get("_modules", {})
        if name in modules or not modules:
            return super().__getattr__(name)
        value = getattr(modules["current"], name)
        if isinstance(value, Tensor) and any(getattr(form, name) is not value for form in modules["forms"]):
            raise UserError(f"the model reads {self.path}.{name} past the layer; run a forward pass for each adapter")
        return value


@contextmanager
def mixed_batch(model: nn.Module, adapters: Sequence[str | None]) -> Iterator[nn.Module]:
    """Within the context each row of a batch is computed with an adapter of its own, and with that adapter's head.

    Layers with additions and those of the head run once for each adapter, on its rows; all others run once. It is a
    context and no argument of the forward pass, as peft's `adapter_names` is, so that the forward passes of timm and
    transformers, `generate` among them, keep their signatures. As in peft it is for evaluation: nothing has a
    gradient.

        with mixed_batch(model, adapters=["a", "b", None, "a"]):
            logits = model(x)  # x of four rows

    Args:
        model: A model with several adapters, in evaluation.
        adapters: The name for each row of the batch (with beams, for each of them); None is the base with the head of
            the active adapter, as within `disable`.

    Raises:
        UserError: If a name is unknown, the model is in training, merged, sharded or in such a context, or an adapter
            changes more than single layers row by row: prompts, prefixes, parameters outside layers. In a forward
            pass: if the batch has another number of rows. The model is then as it was.
    """
    bare, here = unwrap(model), adapters_of(model)
    if isinstance(adapters, str) or not adapters:
        raise UserError('adapters must list a name for each row, such as ["a", "b", None]')
    inactive = {name: here.inactive_named(name) for name in adapters if name not in (None, here.active)}
    check_switchable(model)
    if bare.training:
        raise UserError("mixed_batch is for evaluation; call model.eval() first")
    _check_row_by_row(bare, inactive)
    layers = [layer for adapter in inactive.values() for layer in adapter.layers.values()]
    vars(bare)[MIXED] = True
    check = bare.register_forward_pre_hook(partial(_check_rows, len(adapters)), with_kwargs=True)
    places = list[tuple[nn.Module, str, nn.Module]]()
    try:
        rows = _rows(bare, inactive, adapters)
        places += [(m, key, child) for m in bare.modules() for key, child in m._modules.items() if child in rows]
        for module, key, child in places:
            module._modules[key] = rows[child]
        with torch.no_grad():
            yield model
    finally:
        check.remove()
        del vars(bare)[MIXED]
        for module, key, child in places:
            module._modules[key] = child
        for layer in layers:
            layer.release()


def _rows(model: nn.Module, inactive: Mapping[str, Inactive], adapters: Sequence[str | None]) -> dict[nn.Module, Rows]:
    """What takes the place of each module of which some adapter has another form than the active one."""
    active, modules = adapted_layers(model), named_modules(model)
    forms: dict[str | None, dict[nn.Module, nn.Module]] = {}
    if None in adapters:
        forms[None] = {layer: layer.plain() for layer in active}
    for name, adapter in inactive.items():
        forms[name] = {layer: layer.plain() for layer in active if layer.path not in adapter.layers}
        for path, layer in adapter.layers.items():
            current = modules[path]
            layer.hold(current.plain() if isinstance(current, Adapted) else current)
            forms[name][current] = layer
        forms[name] |= {module: _twin(module, tensors) for module, tensors in holders(model, adapter.head).items()}
    paths = {module: path for path, module in modules.items()}
    changed = dict.fromkeys(module for of_name in forms.values() for module in of_name)
    return {m: Rows(paths[m], m, [forms.get(name, {}).get(m, m) for name in adapters]) for m in changed}


def _check_row_by_row(model: nn.Module, inactive: Mapping[str, Inactive]) -> None:
    """Refuse adapters that change more than layers without children, which compute each row by itself."""
    layers = [*adapted_layers(model), *(layer for adapter in inactive.values() for layer in adapter.layers.values())]
    changed = [layer.path for layer in layers if layer.base_content["_modules"]]
    modules = named_modules(model)
    paths, heads = {module: path for path, module in modules.items()}, [a.head for a in inactive.values()]
    for module in dict.fromkeys(module for head in heads for module in holders(model, head)):
        inside = isinstance(modules[paths[module].rpartition(".")[0]], nn.MultiheadAttention)
        if any(True for _ in module.children()) or inside or own_forward(module) is not None:
            changed.append(paths[module] or type(model).__name__)
    if changed:
        raise UserError(
            f"mixed_batch takes additions and heads that compute each row by themselves, and {changed[0]} does not; "
            "run a forward pass for each adapter"
        )


def _check_rows(number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a batch of which no input has the number of rows; a vector may be of positions."""
    lengths = [len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1]
    if lengths and number not in lengths:
        raise UserError(f"mixed_batch lists {number} adapters for a batch of {lengths[0]} rows; list one for each")


def _twin(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with other tensors."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers"):
        content = vars(module)[name]
        vars(twin)[name] = content | {key: tensor for key, tensor in tensors.items() if key in content}
    take_forward(twin, module)
    return twin
