"""The linear probe: the head alone."""

from __future__ import annotations

from torch import nn

from capaboost_core.errors import UserError
from capaboost_core.methods.base import Method
from capaboost_core.methods.registry import register_method
from capaboost_core.plan import Plan, in_prefix


@register_method("linear")
class LinearProbe(Method):
    """Nothing is trained but the head."""

    def check(self, model: nn.Module, plan: Plan) -> None:
        if not any(in_prefix(name, prefix) for name, _ in model.named_parameters() for prefix in plan.head):
            raise UserError(
                f"method linear trains the head only, but {type(model).__name__} has none; set num_classes"
            )
