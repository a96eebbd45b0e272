"""The reference: a page for each package with all that it exports, from the docstrings."""

from __future__ import annotations

import importlib

PACKAGES = {
    "capaboost_core": "Any PyTorch model: inject, train, save, load, merge.",
    "capaboost_vision": "timm: `timm.create_model(..., capaboost=...)` after this import.",
    "capaboost_text": "transformers.",
    "capaboost_peft": "Behind peft's `get_peft_model`.",
    "capaboost": "Trained runs: load, predict, share. All of `capaboost_core` is here, too.",
}
# What a method of one's own is built from, and no `__all__` lists.
FURTHER = {
    "capaboost_core": (
        "capaboost_core.layers.Adapted",
        "capaboost_core.layers.Mergeable",
        "capaboost_core.plan.Roles",
        "capaboost_core.sharing.tied.TiedWeight",
    )
}


def page(package: str) -> str:
    parts = [f"# {package}", PACKAGES[package]]
    parts += [f"::: {path}" for path in (*paths(package), *FURTHER.get(package, ()))]
    return "\n\n".join(parts) + "\n"


def paths(package: str) -> list[str]:
    """The exported names, as a program imports them."""
    module = importlib.import_module(package)
    return [f"{package}.{name}" for name in getattr(module, "OWN", None) or module.__all__]
