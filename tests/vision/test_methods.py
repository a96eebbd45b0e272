"""Every method on every timm family: it has an effect wherever it goes, or says in a line why it is not there."""

import pytest

import capaboost_vision
from capaboost_core import UserError
from tests.methods.liveness import METHODS, without_effect
from tests.vision.models import FAMILIES, create, image

STAGES = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256")
REFUSED = {(name, method): "shares factors of one width" for name in STAGES for method in ("fact-tt", "fact-tk")}


@pytest.mark.parametrize("name", FAMILIES)
def test_it_works_or_is_refused(name):
    for method in METHODS:
        model = create(name)
        if (name, method) in REFUSED:
            with pytest.raises(UserError, match=REFUSED[name, method]):
                capaboost_vision.inject(model, method)
        else:
            capaboost_vision.inject(model, method)
            assert without_effect(model, lambda model: model(image(model))) == [], method
