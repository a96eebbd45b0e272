"""Every method on every timm family."""

import pytest

import capaboost_vision
from tests.methods.liveness import check_each
from tests.vision.models import FAMILIES, create, image

REFUSED = dict.fromkeys(("fact-tt", "fact-tk"), "shares factors of one width")  # of models with stages


@pytest.mark.parametrize("name", FAMILIES)
def test_it_works_or_is_refused(name):
    refused = REFUSED if name.startswith("swin") else {}
    check_each(lambda: create(name), capaboost_vision.inject, lambda model: model(image(model)), refused)
