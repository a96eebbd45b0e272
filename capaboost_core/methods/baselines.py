"""Methods that add nothing: the linear probe, BitFit (Ben Zaken et al., 2022) and full fine-tuning."""

from __future__ import annotations

from torch import nn

from capaboost_core.errors import UserError
from capaboost_core.methods.method import Method, register_method
from capaboost_core.plan import Plan, in_prefix


@register_method("linear")
class LinearProbe(Method):
    """Nothing is trained but the head."""

    def check(self, model: nn.Module, plan: Plan) -> None:
        if not any(in_prefix(name, prefix) for name, _ in model.named_parameters() for prefix in plan.head):
            raise UserError(
                f"method linear trains the head only, but {type(model).__name__} has none; set num_classes"
            )


@register_method("full")
class FullFineTuning(Method):
    """Every parameter of the base model is trained."""

    def trains(self, name: str) -> bool:
        return True


@register_method("bitfit")
class BitFit(Method):
    """Every bias of the base model is trained: of linear layers, of norms, of the embedding of patches.

    Nothing is added, so that the trained model is as fast as its base, and there is nothing to merge. The authors
    train what has `bias` in its name (benzakenelad/BitFit glue_evaluator.py:73-82, 612-628 at 7ead19a), with AdamW
    and 1e-3 in their example.
    """

    def check(self, model: nn.Module, plan: Plan) -> None:
        names = [name for name, _ in model.named_parameters() if self.trains(name)]
        if all(any(in_prefix(name, prefix) for prefix in plan.head) for name in names):
            raise UserError(f"method bitfit trains biases, but {type(model).__name__} has none; choose another method")

    def trains(self, name: str) -> bool:
        return name.endswith("bias")
