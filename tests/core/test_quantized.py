"""Quantized weights: refused where they would change or train, and saved around where they are frozen."""

import warnings

import pytest
import torch
from torch import nn

from capaboost_core import Plan, Target, UserError, inject, load_adapter, save_adapter
from capaboost_core.adapter_files.base_model import DifferentBaseWarning
from tests.core.toy_model import PLAN, X, fresh_base, randomise


class Int8(torch.Tensor):
    """Rows of int8 with a scale each, of which only products and `dequantize` are written, as in torchao."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values):
        self.scale = values.abs().amax(1, keepdim=True) / 127
        self.rows = (values / self.scale).round().to(torch.int8)

    def dequantize(self):
        return self.rows * self.scale

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            return nn.functional.linear(args[0], args[1].dequantize(), *args[2:])
        return super().__torch_function__(function, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(operator)


def quantized(kind, *names):
    """A base of which the named layers are quantized."""
    model = fresh_base()
    if kind == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        config = quantization.Int8WeightOnlyConfig()
        quantization.quantize_(model, config, filter_fn=lambda module, name: name in names)
    for name in names if kind == "ours" else ():
        layer = model.get_submodule(name)
        layer.weight = nn.Parameter(Int8(layer.weight.detach()), requires_grad=False)
    return model


@pytest.mark.parametrize("kind", ["ours", "torchao"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["first"], "target first has a weight of Int8.*, which cannot carry an adapter; load the model unquantized"),
        (["head"], "head.weight is to train, but is Int8.*; leave it out when you quantize the model"),
    ],
)
def test_quantized_weights_are_refused_before_anything_changes(kind, names, message):
    model = quantized(kind, *names)
    before = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    with pytest.raises(UserError, match=message):
        inject(model, "lora", PLAN)
    after = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    assert all(after[name][0] is before[name][0] and after[name][1] == before[name][1] for name in before | after)


@pytest.mark.parametrize("kind", ["ours", "torchao"])
def test_an_adapter_beside_quantized_layers_is_saved_and_comes_back(kind, tmp_path):
    model = randomise(inject(quantized(kind, "first"), "lora", Plan((Target("second"),), head=("head",))))
    save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_adapter(quantized(kind, "first"), tmp_path)
    assert torch.equal(loaded(X), model(X))
    with pytest.warns(DifferentBaseWarning, match=r"first\.weight"):
        load_adapter(fresh_base(), tmp_path)
