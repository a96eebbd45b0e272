"""Optional libraries: those of the extras, and those of integrations that a program imports only with a model.

Importing `capaboost_text` imports no transformers. The layers of an integration are registered before the class of a
layer is first looked up, if its library is imported by then, as it is in any program that has a model of it.
"""

from __future__ import annotations

from importlib.util import find_spec

from capaboost_core.errors import UserError

# What pip installs for each extra of setup.cfg, so that the line works wherever this package was installed from.
PACKAGES = {
    "plots": "matplotlib",
    "tensorboard": "tensorboard",
    "onnx": "onnx onnxruntime",
    "peft": "'peft>=0.21,<0.22'",
    "prepare": "tensorflow h5py opencv-python-headless",
    "report": "plotly",
    "ray": "ray",
    "completion": "shtab",
    "slurm": "submitit",
    "trackio": "trackio",
    "wandb": "wandb",
}
PENDING: dict[str, str] = {}  # the module that registers an integration's layers, by its library


def is_installed(module: str) -> bool:
    """Whether a module of this name can be imported; it is not imported."""
    return find_spec(module) is not None


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install {PACKAGES[extra]}"


def need(module: str, extra: str, what: str) -> None:
    """Check that a library of an extra is installed.

    Args:
        module: The module that is needed.
        extra: The extra in setup.cfg.
        what: What needs it, as a plural noun.

    Raises:
        UserError: If it is not installed, with the command that installs it.
    """
    if not is_installed(module):
        raise UserError(f"{what} need {module}, which is not installed; type {install_line(extra)}")
