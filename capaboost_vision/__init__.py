"""CapaBoost for timm: after this import `timm.create_model(..., capaboost=...)` works."""

from capaboost_vision import backbone  # noqa: F401  registers the embedded backbone, before all are wrapped
from capaboost_vision.timm_register import inject, register_all, write_mergeable

register_all()
write_mergeable()

__all__ = ["inject"]
