"""Integrations that a program has imported, whose library it may not have needed yet.

Importing `capaboost_text` imports no transformers; its layers are registered before the first look at a layer's class,
if that library is imported by then, as it is where a model of it is at hand.
"""

from __future__ import annotations

import importlib
import sys

PENDING: dict[str, str] = {}  # the module that registers an integration's layers, by its library


def complete() -> None:
    """Register the layers of the integrations whose libraries are imported by now."""
    for library in [library for library in PENDING if library in sys.modules]:
        importlib.import_module(PENDING.pop(library))
