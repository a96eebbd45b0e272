"""NOAH's parts written out, subnets that share the weights of their supernet, and the draw of one a step."""

import random
import re

import pytest
import timm
import torch
from torch import nn

import capaboost_vision
from benchmarks.fake_cuda import autocast, backward, fake_cuda
from capaboost_core import UserError, parameter_counts, resolve_config, trainable_parameters
from capaboost_core.methods.noah import Subnet, cut, parts_of
from tests.compatibility.models import base, drawn
from tests.fake_cuda import OnDevice
from tests.methods.cases import WIDTH, adapted, out, put_in, trained
from tests.methods.vit_by_hand import IMAGES, vit_by_hand

DIMS = ("lora_dim", "adapter_dim", "prompt_dim")
SUBNETS = {
    "every part in every block": Subnet((3, 1), (1, 2), (2, 3)),
    "prompts that stay in the second block": Subnet((3, 0), (0, 2), (2, 0)),
    "prompts in the second block alone": Subnet((0, 2), (3, 0), (0, 1)),
    "LoRA alone": Subnet((1, 3), (0, 0), (0, 0)),
}
each_subnet = pytest.mark.parametrize("subnet", SUBNETS.values(), ids=SUBNETS)
EVERY = Subnet((4, 4), (4, 4), (4, 4))


def fixed(subnet, **changes):
    return dict(zip(DIMS, subnet, strict=True)) | {"r": None} | changes


def static(subnet, preset="noah", **changes):
    """The tiny ViT with a subnet in float64, drawn values in it."""
    config = resolve_config(preset).replace(**dict(zip(DIMS, subnet, strict=True)), **changes)
    model = put_in(base("vit"), config).double().eval()
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            if not name.startswith("head"):
                parameter.copy_(drawn(name, tuple(parameter.shape), 0.2))
    return model


def by_block(parts, subnet):
    """Each kind of part by block, None where its width is 0."""
    return [[next(of_kind) if width else None for width in widths]
            for of_kind, widths in zip(map(iter, parts), subnet, strict=True)]  # fmt: skip


@each_subnet
@pytest.mark.parametrize("tying", ["", "capaboost-"])
@pytest.mark.parametrize("targets", ["fused-qkv", "attention-qv"])
def test_written_out(subnet, tying, targets):
    model = static(subnet, f"{tying}noah", targets=targets)
    lora, adapters, prompts = by_block(parts_of(model), subnet)
    scale = 1 / (2 * 0.5**2) if tying else 1.0  # 1 / (d density^2): as of capaboost-lora

    def increment(part, x):
        if targets == "fused-qkv":
            return sum(x @ a.T @ b for a, b in zip(part.lora_A.copies()[0], part.lora_B.copies(), strict=True))
        a, b = part.lora_A.copies(), part.lora_B.copies()
        q, v = (sum(x @ a[i, d].T @ b[d][:, i * WIDTH : (i + 1) * WIDTH] for d in range(len(b))) for i in (0, 1))
        return torch.cat([q, torch.zeros_like(q), v], -1)

    def adapter(part, h):
        hidden = [h @ down.T + part.down_bias for down in part.down.copies()]
        ups = part.up.copies()
        return part.up_bias + scale * sum(x / (1 + (-1.702 * x).exp()) @ up for x, up in zip(hidden, ups, strict=True))

    def act(path, x, compute):
        y, (_, index, layer) = compute(x), [*path.split(".", 2), "0", ""][:3] if "blocks" in path else ("", "0", "")
        if layer == "attn.qkv" and lora[int(index)] is not None:
            return y + scale * increment(lora[int(index)], x)
        if layer == "mlp.fc2" and adapters[int(index)] is not None:
            return y + adapter(adapters[int(index)], y)
        return y

    def before(index, tokens):
        if prompts[index] is None:
            return tokens
        own = prompts[index].tokens.copies().flatten(0, 1)
        return torch.cat([tokens[:, :5], own.expand(len(tokens), -1, -1)], 1)

    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), vit_by_hand(act, before))


def test_a_model_of_one_block_has_every_part():
    config = resolve_config("noah").replace(lora_dim=(3,), adapter_dim=(1,), prompt_dim=(2,))
    model = capaboost_vision.inject(timm.create_model("test_vit", depth=1, num_classes=3), config)
    assert [len(parts) for parts in parts_of(model)] == [1, 1, 1]


@each_subnet
def test_a_subnet_is_the_first_of_the_supernets_weights(subnet):
    supernet = trained("noah-supernet", "vit", dims=(0, 1, 2, 3, 4))
    alone = put_in(base("vit"), supernet.capaboost.config.fixed(subnet)).eval()
    with torch.no_grad():
        for whole, own, widths in zip(parts_of(supernet), parts_of(alone), subnet, strict=True):
            remaining = iter(own)
            for part, width in zip(whole, widths, strict=True):
                if width:
                    copy_first(part, next(remaining), width)
    before = out(supernet)
    cut(supernet, subnet)
    torch.testing.assert_close(out(supernet), out(alone))
    assert not torch.allclose(out(supernet), before)
    cut(supernet, EVERY)
    assert torch.equal(out(supernet), before)


def copy_first(part, own, width):
    """The first rows of each dense weight (.., rank, size), and of the bias of the hidden values."""
    own_parameters = dict(own.named_parameters())
    for name, parameter in part.named_parameters():
        if name in ("weight", "bias"):
            continue
        if name.endswith("packed"):
            bits = part.get_submodule(name.removesuffix(".packed")).bits
            parameter = parameter.view(bits.shape)[..., :width, :].flatten().unsqueeze(1)
        elif name == "down_bias":
            parameter = parameter[:width]
        own_parameters[name].copy_(parameter)


def step(model):
    """One objective as the loop calls it: the loss of a forward pass, and the widths that it was computed with."""
    seen = []

    def loss_of(model, images):
        seen.append(Subnet(*(tuple(part.width for part in parts) for parts in parts_of(model))))
        return model(images).square().sum()

    model.capaboost.config.objective(loss_of, model, IMAGES.float()).backward()
    return seen[0]


def test_each_step_draws_a_subnet_of_the_space():
    model = trained("noah-supernet", "vit", dims=(1, 3)).train()
    random.seed(0)
    seen = [step(model) for _ in range(60)]
    for widths in map(set, zip(*seen, strict=True)):
        assert widths == {(1, 0), (3, 0), (1, 1), (1, 3), (3, 1), (3, 3)}
    assert len({*seen}) > 40  # the parts are drawn apart
    random.seed(0)
    assert [step(model) for _ in range(3)] == seen[:3]


def test_a_step_trains_the_widths_that_it_drew_and_leaves_the_rest_without_gradient():
    model = trained("noah-supernet", "vit", dims=(1, 3)).train()
    for seed in range(6):
        random.seed(seed)
        model.zero_grad()
        subnet = step(model)
        for parts, widths in zip(parts_of(model), subnet, strict=True):
            for part, width in zip(parts, widths, strict=True):
                for tied in (module for module in part.modules() if hasattr(module, "packed")):
                    rows = tied.packed.grad.view(tied.bits.shape).transpose(-1, -2).flatten(0, -2).abs().sum(0)
                    assert [bool(row) for row in rows] == [index < width for index in range(3)]
        assert all(p.grad is not None for p in trainable_parameters(model).values())


@pytest.mark.parametrize("widths", [(0, 0), (4, 1)])
def test_a_drawn_step_stays_on_the_gpu_and_waits_for_nothing(widths):
    model = adapted("noah-supernet", "vit", dims=(0, 1, 4), dropout=0.5).train()
    with fake_cuda():
        model, images = model.to("cuda"), torch.zeros(2, 3, 32, 32, device="cuda")
        with OnDevice(), autocast(torch.bfloat16):
            loss = model.capaboost.config.objective(lambda model, x: model(x).float().sum(), model, images)
            cut(model, Subnet(widths, widths, widths))
            loss = loss + model(images).float().sum()
        with OnDevice():
            backward(loss)
    assert all(parameter.grad is not None for parameter in trainable_parameters(model).values())


def test_evaluation_after_a_step_has_the_whole():
    model = trained("noah-supernet", "vit", dims=(1, 3))
    whole = out(model)
    random.seed(0)
    assert step(model) != Subnet((3, 3), (3, 3), (3, 3))
    assert not torch.equal(out(model), whole)
    model.capaboost.config.after_step(model, 1, 1)
    assert torch.equal(out(model), whole)


def test_dropout_is_on_lora_s_input_hidden_values_and_prompts():
    model = adapted("noah", "vit", dropout=0.5)
    lora, adapters, prompts = ([part.dropout for part in parts] for parts in parts_of(model))
    assert {dropout.p for dropout in (*lora, *adapters, *prompts)} == {0.5}
    assert all(isinstance(dropout, nn.Dropout) for dropout in (*lora, *adapters, *prompts))


COUNTS = {
    "noah": (dict(r=5), 12 * (7 * 5 * 768 + 5 + 768)),
    "a released subnet": (  # experiments/NOAH/subnet/VTAB/ViT-B_prompt_dtd.yaml at e9c55f3
        fixed(Subnet((10, 5, 1, 1) * 3, (1, 1, 1, 10, 1, 1, 10, 10, 10, 10, 10, 1), (10, 5, 1, 1) * 3)),
        768 * (4 * 51 + 2 * 66 + 51) + 66 + 12 * 768,
    ),
    "parts of a third of the blocks": (fixed(Subnet((8,) * 12, (50,) * 4 + (0,) * 8, (0,) * 12)), 294_912 + 310_472),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_widths(name):
    settings, expected = COUNTS[name]
    config = resolve_config("noah").replace(**{k: v for k, v in settings.items() if v is not None})
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert parameter_counts(capaboost_vision.inject(model, config)).trainable == expected


REFUSED = {
    "numbers for other blocks": (dict(lora_dim=[1, 2, 3]), "lora_dim has 3 numbers, but the model has 2 blocks"),
    "a width below 0": (dict(prompt_dim=[1, -1]), "prompt_dim is (1, -1); type whole numbers from 0 to 65536"),
    "nothing at all": (dict(lora_dim=0, adapter_dim=[0, 0], prompt_dim=0), "lora_dim is 0; all widths are 0"),
    "r beside all widths": (dict(r=3, lora_dim=1, adapter_dim=1, prompt_dim=1), "r is 3; it means nothing where"),
    "no list": (
        dict(adapter_dim=[]),
        "adapter_dim is []; type a whole number, a list of whole numbers, or null for r",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_widths_are_refused_in_a_line(name):
    settings, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        put_in(base("vit"), {"method": "noah", "num_tied": 1, "density": 1.0} | settings)
    assert "\n" not in str(refusal.value)


SPACES = {
    "a depth above the blocks": (dict(depths=[1, 3]), "depths has 3, but the model has 2 blocks; type 2 or less"),
    "no width above 0": (dict(dims=[0]), "dims is (0,); type whole numbers from 0 to 65536, one of them above 0"),
}


@pytest.mark.parametrize("name", SPACES)
def test_wrong_spaces_are_refused_in_a_line(name):
    settings, message = SPACES[name]
    with pytest.raises(UserError, match=re.escape(message)):
        put_in(base("vit"), {"method": "noah-supernet", "num_tied": 1, "density": 1.0} | settings)
