"""Where a training step spends the time that an adapter adds, from the profiler's record of its operators.

Whole steps differ by a percent or two, and a busy machine varies by more. Operators are timed where they stand in a
step, with caches as the step leaves them, and summed over the adapted layers.

Examples:
  python -m benchmarks.parts                                  # ViT-B/16
  python -m benchmarks.parts --model roberta-base --repeats 20
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.command import Measured, finish, repeats_of, run_command
from benchmarks.model_command import set_up
from benchmarks.step import make_step
from benchmarks.timing import interleave
from capaboost_core import UserError

DEFAULT = ("capaboost-d1", "capaboost-d2", "capaboost-d4", "capaboost-d8")
COPIES = ("_ScatterCopies", "_ScatterCopiesBackward")
LAYERS = ("_LowRankLinear", "_LowRankLinearBackward")
PRODUCTS = ("aten::linear", "aten::matmul", "aten::addmm_")
Parts = dict[str, float]


def parts_of(operators: Iterable[FunctionEvent]) -> Parts:
    """Milliseconds by part of one step, from the profiler's operators with their shapes.

    Returns:
        `frozen_ms`: products of the adapted layers with their frozen weights. `small_ms`: their other products.
        `small_at_frozen_rate_ms`: what those would take with as many multiply-adds a second as the frozen ones.
        `copies_ms`: the masked copies, and the gradients of the packed weights.
    """
    operators = list(operators)
    products = [o for o in operators if o.name in PRODUCTS and o.cpu_parent and o.cpu_parent.name in LAYERS]
    forward = {_multiply_adds(product) for product in products if product.name == "aten::linear"}
    frozen = [product for product in products if _multiply_adds(product) in forward]  # as many again in backward
    small = [product for product in products if _multiply_adds(product) not in forward]
    pace = _milliseconds(frozen) / sum(map(_multiply_adds, frozen))
    return {
        "frozen_ms": _milliseconds(frozen),
        "small_ms": _milliseconds(small),
        "small_at_frozen_rate_ms": pace * sum(map(_multiply_adds, small)),
        "copies_ms": _milliseconds(o for o in operators if o.name in COPIES),
    }


def _milliseconds(operators: Iterable[FunctionEvent]) -> float:
    return sum(operator.cpu_time_total for operator in operators) / 1e3


def _multiply_adds(product: FunctionEvent) -> int:
    """Of x W^T with W (out, in), or of the two matrices that are the last operands."""
    shapes: list[Any] = [shape for shape in product.input_shapes if shape]
    if product.name == "aten::linear":
        return math.prod(shapes[0]) * shapes[1][0]
    return math.prod(shapes[-2]) * shapes[-1][1]


def make_measure(step: Callable[[], None], found: list[Parts]) -> Callable[[], float]:
    """A measure: seconds of one step under the profiler, whose parts are added to `found`."""

    def measure() -> float:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as profiler:
            begun = time.perf_counter()
            step()
            seconds = time.perf_counter() - begun
        found.append(parts_of(profiler.events() or ()))
        return seconds

    return measure


def main(arguments: list[str] | None = None) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler greets on stderr
    setup = set_up(__doc__, DEFAULT, arguments)
    if setup.device.type != "cpu" or setup.options.compile:
        raise UserError("parts are those of eager steps on the CPU; pass --device cpu, without --compile")
    if not set(DEFAULT).issuperset(setup.options.peers):
        raise UserError(f"only unmerged layers of CapaBoost have parts; pass some of: --peers {' '.join(DEFAULT)}")
    found: dict[str, list[Parts]] = defaultdict(list)
    measures = {name: make_measure(make_step(peer, setup)[0], found[name]) for name, peer in setup.peers()}
    values = interleave(measures, repeats_of(setup.options))
    counted = {name: parts[-len(values[name]) :] for name, parts in found.items()}  # without the warm-ups
    details = {n: {key: statistics.median(p[key] for p in parts) for key in parts[0]} for n, parts in counted.items()}
    measured = Measured("parts", setup.variant, "s", values, details, (), setup.settings, ("parts",))
    finish(setup.options, setup.device, measured)


if __name__ == "__main__":
    sys.exit(run_command(main))
