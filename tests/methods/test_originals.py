"""The authors' code gives the same outputs for the same values: `tests/methods/originals/write.py` ran it."""

import json

import pytest
import torch

from tests.methods.originals.cases import CASES, EXPECTED, addition, output

FOUND = json.loads(EXPECTED.read_text())


@pytest.mark.parametrize("name", CASES)
def test_the_output_is_the_originals(name):
    expected = torch.tensor(FOUND[name]["output"], dtype=torch.float64)
    torch.testing.assert_close(output(name, addition(name)), expected, atol=1e-12, rtol=1e-12)
