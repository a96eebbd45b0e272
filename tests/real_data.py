"""Where the real data lies that some tests read; without it they are skipped."""

import os
from pathlib import Path

import pytest

DEFAULT = Path(__file__).parents[2] / "shared" / "data"
VARIABLE = "CAPABOOST_DATA"


def real_data(*parts: str) -> Path:
    """A path below the folder that CAPABOOST_DATA names, by default ../shared/data; skips the test if it is absent."""
    path = Path(os.environ.get(VARIABLE) or DEFAULT).resolve().joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} does not exist; set {VARIABLE} to the folder of the real data")
    return path
