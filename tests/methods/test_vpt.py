"""Prompts are tokens that every block sees: before each block of its own, or carried from the first to the last."""

import math

import pytest
import timm
import torch

import capaboost_vision
from capaboost_core import UserError, disable, parameter_counts, trainable_parameters
from capaboost_core.injection import adapted_layers
from capaboost_core.methods.noah import parts_of, pass_on
from capaboost_core.methods.vpt import PromptedBlock
from tests.compatibility.models import VIT, base
from tests.core.prefix_by_hand import copies_by_hand
from tests.methods.cases import WIDTH, adapted, settings, trained
from tests.methods.vit_by_hand import DEPTH, IMAGES, vit_by_hand

WAYS = ("shallow", "deep")
TYINGS = {"": 1, "capaboost-": 2}


def prompts_by_hand(preset, model):
    """Prompts (d*r, width) by the path of their block."""
    config, blocks = settings(preset), [layer for layer in adapted_layers(model) if layer.prompts is not None]

    def of(path, prompts):
        return copies_by_hand(config, path, "prompts", prompts.tokens, WIDTH)

    return {block.path: of(block.path, block.prompts) for block in blocks}


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize("way", WAYS)
def test_written_out_with_the_prompts_behind_the_class_token(way, tying):
    preset = f"{tying}vpt-{way}"
    model = trained(preset, "vit").double()
    prompts = prompts_by_hand(preset, model)
    count = 4 * TYINGS[tying]
    assert [len(of_block) for of_block in prompts.values()] == [count] * (DEPTH if way == "deep" else 1)

    def before(index, tokens):
        """As the authors' code has it: in front of the patches, in place of those that are there already."""
        own = prompts.get(f"blocks.{index}")
        if own is None:
            return tokens
        patches = tokens[:, 1 + (count if index else 0) :]
        return torch.cat([tokens[:, :1], own.expand(len(tokens), -1, -1), patches], 1)

    with torch.no_grad():
        ours = model(IMAGES)
    torch.testing.assert_close(ours, vit_by_hand(before=before))
    assert not torch.allclose(ours, vit_by_hand())


@pytest.mark.parametrize("way", WAYS)
def test_the_head_gets_the_image_s_tokens(way):
    with torch.no_grad():
        assert adapted(f"vpt-{way}", "vit").forward_features(IMAGES.float()).shape == (2, 1 + 4, WIDTH)


def test_first_values_are_xavier_s_for_the_embedding_of_patches():
    model = timm.create_model("vit_small_patch16_224", num_classes=0, capaboost="vpt-deep")
    values = torch.cat([p.flatten() for p in trainable_parameters(model).values()])
    assert parameter_counts(model).trainable == len(values) == 12 * 10 * 384
    bound = math.sqrt(6 / (3 * 16 * 16 + 384))
    assert 0.99 * bound < values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_entries_of_prompts_are_dropped_for_each_image():
    model = adapted("vpt-deep", "vit", dropout=0.5).train()
    prompts = model.blocks[0].prompts
    with torch.no_grad():
        prompts.tokens.packed.fill_(1.0)
        tokens = prompts(torch.zeros(3, 2, WIDTH))
    assert not tokens[:, :2].any()
    assert {*tokens[:, 2:].unique().tolist()} == {0.0, 2.0}
    assert not torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_is_refused(way):
    with pytest.raises(UserError, match="has prompts and takes no mask"):
        adapted(f"vpt-{way}", "vit").forward(IMAGES.float(), is_causal=True)


REFUSED = {
    ("swin_tiny_patch4_window7_224", "vpt-deep"): r"vpt-deep has no form for layers\.0\.blocks\.0, a timm\.\S+Swin",
    ("eva02_tiny_patch14_224", "vpt-deep"): r"vpt-deep has no form for blocks\.0, a timm\.models\.eva\.EvaBlock",
    (
        "pit_ti_224",
        "vpt-shallow",
    ): r"transformers\.0\.blocks is followed by transformers\.2\.blocks; choose vpt",
}


@pytest.mark.parametrize(("name", "preset"), REFUSED)
def test_other_blocks_are_refused_by_name(name, preset):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UserError, match=REFUSED[name, preset]):
        capaboost_vision.inject(model, preset)


def test_shallow_in_a_single_block():
    model = timm.create_model("vit_tiny_patch16_224", **VIT | {"depth": 1}, capaboost="vpt-shallow").eval()
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 5, WIDTH)


@pytest.mark.parametrize("preset", ["vpt-shallow", "capaboost-vpt-shallow", "vpt-deep", "noah"])
def test_feature_maps_are_those_of_the_image(preset):
    """Prompts stand behind all other tokens, so that a map is what hooks see before them."""
    model = timm.create_model("vit_tiny_patch16_224", **VIT | {"depth": 4}, capaboost=settings(preset)).eval()
    if preset == "noah":  # a subnet whose first block hands its prompts on
        for prompts in parts_of(model)[2][1:3]:
            prompts.width = 0
        pass_on([module for module in model.modules() if isinstance(module, PromptedBlock)])
    images, seen = IMAGES.float(), []
    handles = [block.register_forward_hook(lambda _, x, y: seen.append(y[:, : 1 + 4])) for block in model.blocks]
    with torch.no_grad():
        features = model.forward_features(images)
    for handle in handles:
        handle.remove()
    wanted = [tokens[:, 1:].transpose(1, 2).reshape(2, WIDTH, 2, 2) for tokens in seen]
    with torch.no_grad():
        final, maps = model.forward_intermediates(images)
        alone = model.get_intermediate_layers(images, n=[0], reshape=True)
    assert [tuple(found.shape) for found in maps] == [(2, WIDTH, 2, 2)] * 4
    for found, expected in zip([*maps, alone[0], final], [*wanted, wanted[0], features], strict=True):
        torch.testing.assert_close(found, expected)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)


def test_feature_maps_with_checkpointing_are_refused_where_prompts_are_handed_on():
    model = trained("vpt-shallow", "vit")
    model.set_grad_checkpointing()
    with pytest.raises(UserError, match=r"set_grad_checkpointing\(False\)"):
        model.forward_intermediates(IMAGES.float())
    model.set_grad_checkpointing(False)
    _, maps = model.forward_intermediates(IMAGES.float())
    maps[0].sum().backward()
    (prompts,) = (block.prompts for block in model.blocks if getattr(block, "prompts", None) is not None)
    assert all(parameter.grad.abs().sum() > 0 for parameter in prompts.parameters())


def test_without_prompts_feature_maps_are_timm_s():
    model, images = base("vit").eval(), IMAGES.float()
    with torch.no_grad():
        maps = model.forward_intermediates(images, intermediates_only=True)
        with disable(adapted("vpt-shallow", "vit").eval()) as prompted:
            same = prompted.forward_intermediates(images, intermediates_only=True)
    for found, expected in zip(same, maps, strict=True):
        torch.testing.assert_close(found, expected)
