"""CapaBoost for transformers encoders; transformers is imported when one of the functions is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capaboost_core.extras import PENDING

if TYPE_CHECKING:
    from capaboost_text.encoders import from_pretrained, inject

__all__ = ["from_pretrained", "inject"]
PENDING["transformers"] = "capaboost_text.roles"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from capaboost_text import encoders

    return getattr(encoders, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
