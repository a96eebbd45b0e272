"""Full fine-tuning: every weight."""

from __future__ import annotations

from capaboost_core.methods.base import Method
from capaboost_core.methods.registry import register_method


@register_method("full")
class FullFineTuning(Method):
    """Every parameter of the base model is trained."""

    def trains(self, name: str) -> bool:
        return True
