"""Adapter files that version 0.1.0 wrote load, and compute what they computed then."""

import json
from pathlib import Path

import pytest
import torch

from capaboost_core import CapaBoostConfig, load_adapter
from tests.compatibility.models import adapt, base, logits

FOLDER = Path(__file__).parent / "0.1.0"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("into", ["base", "adapted"])
def test_logits_are_those_of_then(name, into):
    model = base(EXPECTED[name]["base"])
    if into == "adapted":
        adapt(
            model,
            CapaBoostConfig.from_record(json.loads((FOLDER / name / "adapter_config.json").read_text())["config"]),
        )
    loaded = load_adapter(model, FOLDER / name)
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded.eval()), torch.tensor(EXPECTED[name]["logits"]))


def test_the_adapter_matters_in_every_case():
    for name, case in EXPECTED.items():
        with torch.no_grad():
            plain = logits(base(case["base"]))
        assert not torch.allclose(plain, torch.tensor(case["logits"]), atol=1e-3), name
