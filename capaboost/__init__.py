"""The public API of `capaboost_core`, the commands and their settings files.

`from capaboost import save_adapter` imports the core at that moment, so that `capaboost --help` need not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capaboost.hub import push_to_hub  # noqa: F401
    from capaboost.inference import ImageRun, TextRun, load_run  # noqa: F401
    from capaboost_core import *  # noqa: F403

OWN = {
    "ImageRun": "capaboost.inference",
    "TextRun": "capaboost.inference",
    "load_run": "capaboost.inference",
    "push_to_hub": "capaboost.hub",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("capaboost")
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in OWN:
        return getattr(importlib.import_module(OWN[name]), name)
    import capaboost_core

    if name != "__all__" and name not in capaboost_core.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(capaboost_core, name)


def __dir__() -> list[str]:
    import capaboost_core

    return sorted([*globals(), *capaboost_core.__all__])
