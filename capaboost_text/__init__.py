"""CapaBoost for transformers encoders."""

from capaboost_text.encoders import from_pretrained, inject

__all__ = ["from_pretrained", "inject"]
