"""What a model cannot read is one line before the first step, and it blames the setting that is wrong."""

import pytest
import torch
from accelerate import Accelerator

from capaboost.runs.settings import VisionModelSection, VtabRun
from capaboost.runs.vtab import attend_by_products, create_base, create_model, prepare
from capaboost.training.experiment import run_experiment
from capaboost.training.loop import try_out
from capaboost.training.optimize import make_accelerator
from capaboost.training.run_state import RunState
from capaboost.training.settings import build_run
from capaboost_core import UserError
from capaboost_vision.backbone import EMBEDDED

UNMADE = "timm cannot make "
UNTRAINED = "the model cannot be trained on this data: "
WRONG = {  # model, its settings, and how the line begins
    "heads that do not divide": (EMBEDDED, {"kwargs": {"num_heads": 5}}, UNMADE),
    "no pooling": (EMBEDDED, {"kwargs": {"global_pool": ""}}, UNTRAINED),
    "features": (EMBEDDED, {"kwargs": {"features_only": True}}, "model.kwargs.features_only makes a model without"),
    "no class token": ("test_vit", {"kwargs": {"class_token": False, "global_pool": "token"}}, UNMADE),
    "one channel": ("test_vit", {"kwargs": {"in_chans": 1}}, UNTRAINED),
    "smaller than a patch": ("test_vit", {"img_size": 7}, ""),
    "a size between units": ("hiera_tiny_224", {"img_size": 40}, UNTRAINED),
    "a norm of no name": ("test_vit", {"kwargs": {"norm_layer": "nothing"}}, UNMADE),
    "a depth of none": ("test_vit", {"kwargs": {"depth": "two"}}, UNMADE),
}


def make(name: str, **model) -> VtabRun:
    sections = {
        "model": {"name": name, "pretrained": False} | model,
        "data": {"dataset": "digits", "source": "digits"},
        "train": {"epochs": 1, "mixed_precision": "no"},
        "adapter": {"method": "linear"},
    }
    return build_run(VtabRun, sections)


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_do_not_fit_are_one_line_and_write_nothing(case, tmp_path):
    name, settings, begin = WRONG[case]
    with pytest.raises(UserError) as caught:
        run_experiment(make(name, **settings), tmp_path / "out", False, prepare)
    assert begin in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


PRETRAINED = {
    "a wrong setting": ({"num_heads": 5}, r"timm cannot make .* with num_heads .*; correct model.img_size and model."),
    "weights that do not fit": ({"embed_dim": 96}, "cannot load the pretrained weights .*; leave model.kwargs and"),
}


@pytest.mark.parametrize("case", PRETRAINED)
def test_with_pretrained_weights_the_setting_is_blamed_and_not_the_weights(case):
    kwargs, message = PRETRAINED[case]
    run = make(EMBEDDED)
    section = VisionModelSection(name=EMBEDDED, pretrained=True, kwargs=kwargs)
    with pytest.raises(UserError, match=message) as caught:
        create_model(section, 10, run.adapter)
    assert f"--model {EMBEDDED}" not in str(caught.value)


def test_the_trial_leaves_nothing_behind():
    """Gradients, random numbers and running statistics are as before."""
    run = make("test_vit", drop_path_rate=0.5)
    setup = prepare(run, Accelerator(cpu=True))
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}
    state = RunState(setup.task.accelerator, setup.model, run.train, 1, {}, None)
    torch.manual_seed(3)
    try_out(state, setup.task)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(value, before[name]) for name, value in setup.model.state_dict().items())
    assert all(parameter.grad is None for parameter in setup.model.parameters())


ATTENTION = {  # pixels a side, precision, and whether PyTorch's fused kernel computes the attention
    "few patches in bf16": (64, "bf16", False),
    "few patches in float32": (64, "no", True),
    "many patches in bf16": (192, "bf16", True),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_by_products_where_the_fused_kernel_is_slow(case, tmp_path):
    size, precision, is_fused = ATTENTION[case]
    run = make(EMBEDDED, img_size=size)
    accelerator = make_accelerator(run.train.replace(mixed_precision=precision), tmp_path)
    model = prepare(run, accelerator).model
    assert {module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")} == {is_fused}


def test_attention_by_products_is_the_same_function():
    model = create_base(VisionModelSection(name=EMBEDDED, pretrained=False), 10).eval()
    images = torch.randn(2, 3, 64, 64)
    fused = model(images)
    attend_by_products(model)
    torch.testing.assert_close(model(images), fused, rtol=1e-4, atol=1e-5)
