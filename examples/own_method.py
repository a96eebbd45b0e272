# %% [markdown]
"""
# A method of one's own

Complete: y = (1 + g) * (W x + b), with a trained gain g for each output.

    capaboost --plugin own_method train-vtab --dataset digits --method gains --epochs 2

run in the folder of this file trains it. In a package of one's own an entry point makes it known without `--plugin`:

    [project.entry-points."capaboost.methods"]
    gains = "my_package.own_method"
"""

# %%
from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from capaboost_core import Method, Plan, Target, register_method
from capaboost_core.layers import Adapted, Mergeable
from capaboost_core.plan import Roles


# %%
class GainLinear(Mergeable, nn.Linear):
    """A frozen linear layer whose outputs are scaled by 1 + g.

    Args:
        base: The frozen layer, whose weight and bias it adopts.
        config: The method's settings.
        target: Path of the layer.
    """

    def __init__(self, base: nn.Linear, config: Gains, target: Target):
        self.adopt(base, target.path)  # in place of nn.Linear's constructor
        self.gain = nn.Parameter(torch.full_like(base.weight[:, 0], config.start))
        self.allow_merging()  # last

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        if self.disabled:
            return F.linear(x, self.weight, self.bias)
        sums = self.current_merged()  # while merged
        if sums is not None:
            return F.linear(x, sums.weight, sums.bias)
        return (1 + self.gain) * F.linear(x, self.weight, self.bias)

    def merged_weight(self) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias that hold the gain."""
        bias = None if self.bias is None else (1 + self.gain) * self.bias
        return (1 + self.gain).unsqueeze(1) * self.weight, bias


# %%
@register_method("gains")  # the name of `--method`
class Gains(Method):
    """y = (1 + g) * (W x + b) on the attention's output layer and the last of the feed-forward part."""

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {nn.Linear: GainLinear}
    wanted: ClassVar[str] = "nn.Linear"

    start: float = Field(0.0, description="First value of each gain.")

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """Which layers, by their roles: o and f2 of every block."""
        return Plan(roles.targets(("o", "f2")), roles.head, roles.required_flags)


# %% [markdown]
# The method is known by its name from here on, to Python and to every command of this process.

# %%
if __name__ == "__main__":
    from tempfile import mkdtemp

    from capaboost.cli import main

    code = main([
        "train-vtab", "--dataset", "digits", "--model", "capaboost_vit_micro_patch8_64", "--method", "gains",
        "--set", "model.img_size=32", "--epochs", "2", "--output-dir", mkdtemp(),
    ])  # fmt: skip
    assert code == 0
