"""Integrations that a program has imported, whose library it may not have needed yet.

Importing `capaboost_text` imports no transformers; its layers are registered before the first look at a layer's class,
if that library is imported by then, as it is where a model of it is at hand.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

from capaboost_core.errors import UserError

# Libraries that only some commands use, and that installing the package without extras leaves out.


# By extra of setup.cfg; by names of the package index, so that the line works wherever this was installed from.
PACKAGES = {
    "plots": "matplotlib",
    "tensorboard": "tensorboard",
    "onnx": "onnx onnxruntime",
    "peft": "'peft>=0.21,<0.22'",
    "prepare": "tensorflow",
    "ray": "ray",
    "slurm": "submitit",
}


def is_installed(module: str) -> bool:
    """Whether a module of this name can be imported; it is not imported."""
    return find_spec(module) is not None


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install {PACKAGES[extra]}"


def need(module: str, extra: str, what: str) -> None:
    """Refuse to go on without a library of an extra.

    Args:
        module: The module that is needed.
        extra: Where setup.cfg has it.
        what: What needs it.

    Raises:
        UserError: If it is not installed, with the command that installs it.
    """
    if not is_installed(module):
        raise UserError(f"{what} need {module}, which is not installed; type {install_line(extra)}")


PENDING: dict[str, str] = {}  # the module that registers an integration's layers, by its library


def complete() -> None:
    """Register the layers of the integrations whose libraries are imported by now."""
    for library in [library for library in PENDING if library in sys.modules]:
        importlib.import_module(PENDING.pop(library))
