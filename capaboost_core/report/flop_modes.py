"""Run a model so that its operators can be counted: a traced forward pass, and a backward pass as it is dispatched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from capaboost_core.errors import UserError
from capaboost_core.report.flop_handles import HANDLES
from capaboost_core.report.fvcore_names import FlopCountAnalysis

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


class Call(nn.Module):
    """A model and its inputs behind the interface of a trace: tensors in, a tuple of tensors out.

    Args:
        model: Any model.
        inputs: A tensor, a tuple of tensors, or a dict of keyword arguments.

    Raises:
        UserError: If the inputs are something else.
    """

    def __init__(self, model: nn.Module, inputs: Inputs):
        super().__init__()
        self.model = model
        self.names = tuple(inputs) if isinstance(inputs, Mapping) else None
        values = inputs.values() if isinstance(inputs, Mapping) else inputs
        self.inputs = (values,) if isinstance(values, Tensor) else tuple(values)
        for value in self.inputs:
            if not isinstance(value, Tensor):
                raise UserError(f"inputs has a {type(value).__name__}; give a tensor, a tuple or a dict of tensors")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.names is None:
            return tuple(_tensors(self.model(*inputs)))
        return tuple(_tensors(self.model(**dict(zip(self.names, inputs, strict=True)))))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def forward_operators(call: Call, known: Iterable[nn.Module] = ()) -> tuple[Counter[str], Counter[str]]:
    """Multiply-adds by operator of a forward pass, and occurrences of the operators that are not counted.

    An autograd function, which a trace cannot see into, is left out within the modules of `known`.
    """
    analysis = FlopCountAnalysis(call, call.inputs).clear_op_handles().set_op_handle(**HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad(), _MetaConvolutions() as convolutions:
        counts = analysis.by_operator() + convolutions.products
    products = Counter({name: int(count) for name, count in counts.items() if "::" not in name})
    others = analysis.unsupported_ops() + Counter({n: count for n, count in counts.items() if "::" in n})
    names = {module: name for name, module in call.named_modules()}
    for module in known:
        inside = analysis.unsupported_ops(names[module])
        others -= Counter({name: count for name, count in inside.items() if name.startswith("prim::PythonOp")})
    return products, others


def half_of_torch(call: Call) -> int:
    """Half of what torch's own counter says of a forward pass, as it counts 2 a multiply-add."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(*call.inputs)
    return counter.get_total_flops() // 2


def forward_outputs(call: Call) -> list[Tensor]:
    """The outputs that have a gradient, of a pass in which an attention is two plain products."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        return [output for output in call(*call.inputs) if output.requires_grad]


def backward_operators(call: Call, outputs: list[Tensor]) -> tuple[int, Counter[str]]:
    """Multiply-adds from the outputs back to all trainable parameters, and occurrences of other operators but views.

    Raises:
        UserError: If no output depends on a trainable parameter.
    """
    trainable = [parameter for parameter in call.parameters() if parameter.requires_grad]
    if not outputs or not trainable:
        raise UserError("nothing in the model is trainable; leave backward out, or inject a method first")
    with _Dispatched() as dispatched:
        torch.autograd.grad(outputs, trainable, [output.detach() for output in outputs], allow_unused=True)
    return dispatched.products, dispatched.others


def dispatched_products(model: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """Multiply-adds of a training step and of its forward pass, as dense kernels run them, in a third of the time of
    `count_flops` and within a percent of it, since no pass is traced for names.

    Raises:
        UserError: As `count_flops`.
    """
    call = Call(model, inputs)
    with torch.random.fork_rng({p.device for p in model.parameters() if p.device.type == "cuda"}):
        with _Dispatched() as dispatched:
            outputs = forward_outputs(call)
        backward, _ = backward_operators(call, outputs)
    return dispatched.products + backward, dispatched.products


@contextmanager
def untraced() -> Iterator[None]:
    """Within the context, a running trace records nothing, and sizes are plain numbers."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


class _MetaConvolutions(TorchFunctionMode):
    """Counts convolutions on the meta device, where their kernel is Python code, which a trace breaks."""

    def __init__(self):
        super().__init__()
        self.products: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in (torch.conv1d, torch.conv2d, torch.conv3d) or not args[0].is_meta:
            return func(*args, **(kwargs or {}))
        with untraced():
            shape = tuple(func(*args, **(kwargs or {})).shape)
            self.products["conv"] += prod(shape) * args[1][0].numel()
        return args[0].new_empty(shape)


class _Dispatched(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.products, self.others = 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").rstrip("_")  # addmm_ is addmm in place
        formula = flop_registry.get(getattr(torch.ops.aten, name, None))
        if name == "convolution_backward":
            self.products += _convolution_backward(*args)
        elif formula is not None:
            self.products += formula(*args, **(kwargs or {}), out_val=output) // 2  # two a multiply-add in torch
        elif not func.is_view:
            self.others[func._schema.name] += 1
        return output


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *settings: Any) -> int:
    """The forward products for each wanted gradient; torch's formula overlooks the groups."""
    transposed, wanted = settings[4], settings[7]
    return (x if transposed else grad).numel() * weight[0].numel() * sum(wanted[:2])
