"""Every method on every encoder family: it has an effect wherever it goes, or says in a line why it is not there."""

import pytest

import capaboost_text
from capaboost_core import UserError
from tests.methods.liveness import METHODS, without_effect
from tests.text.models import FAMILIES, TOKENS, create

REFUSED = {
    ("modernbert", "bitfit"): "has none",
    **{(family, method): f"{method} has no form for" for family in FAMILIES for method in ("vpt-deep", "vpt-shallow")},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_works_or_is_refused(family):
    for method in (*METHODS, "vpt-deep", "vpt-shallow"):
        model = create(family)
        if (family, method) in REFUSED:
            with pytest.raises(UserError, match=REFUSED[family, method]):
                capaboost_text.inject(model, method)
        else:
            capaboost_text.inject(model, method)
            assert without_effect(model, lambda model: model(TOKENS).logits) == [], method
