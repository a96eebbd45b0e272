"""Every method on every encoder family."""

import pytest

import capaboost_text
from tests.methods.liveness import check_each
from tests.text.models import FAMILIES, TOKENS, create

VPT = {method: f"{method} has no form for" for method in ("vpt-deep", "vpt-shallow")}
REFUSED = dict.fromkeys(FAMILIES, VPT) | {"modernbert": VPT | {"bitfit": "has none"}}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_works_or_is_refused(family):
    check_each(lambda: create(family), capaboost_text.inject, lambda model: model(TOKENS).logits, REFUSED[family])
