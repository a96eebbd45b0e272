"""Masks are exact, distinct, and stand still for ever."""

import numpy as np
import pytest

from capaboost_core import CapaBoostConfig, UserError
from capaboost_core.sharing.masks import checksum, mask_bits
from tests.commands import finish, start

SHAPE = (8, 192)
# Files trained with earlier releases regenerate their masks from the seed: these may never change.
GOLDEN = {
    "random": "28a1d4ac477237a85f5e00d7d745846cc9ab761d9e9c4e60c5590b0ecc0b43a0",
    "nm": "309b705f956f00ae951afeb3db89b38eb17d212f44e8ad41ad67ff6b325fc622",
    "same": "220cbbead42a51e6822453871a015ad2f851c4192846f48659f786f3c3bbae01",
}


def config_of(kind: str, **changes) -> CapaBoostConfig:
    groups = {"n": 2, "m": 4} if kind == "nm" else {}
    return CapaBoostConfig(mask=kind, **groups, **changes)


def copies(config, path="blocks.0.attn.qkv", weight="A.0", shape=SHAPE):
    bits = mask_bits(config, path, weight, shape)
    return [(bits >> copy) & 1 for copy in range(config.num_tied)]


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("num_tied", [1, 2, 4, 8])
def test_exactly_the_rounded_share_is_kept(density, num_tied):
    for mask in copies(CapaBoostConfig(density=density, num_tied=num_tied)):
        assert mask.sum() == round(density * mask.size)


def test_masks_differ_by_seed_path_weight_and_copy():
    base = copies(CapaBoostConfig())
    others = [
        base[1],
        copies(CapaBoostConfig(seed=1))[0],
        copies(CapaBoostConfig(), path="blocks.1.attn.qkv")[0],
        copies(CapaBoostConfig(), weight="A.1")[0],
    ]
    for other in others:
        overlap = (base[0] & other).sum() / base[0].sum()
        assert 0.4 < overlap < 0.6  # independent masks of density 0.5 share half of their entries


def test_same_masks_are_the_same_for_all_copies():
    first, *others = copies(config_of("same", num_tied=4))
    assert all((first == other).all() for other in others)


def test_groups_run_along_the_reduction_dimension():
    for mask in copies(CapaBoostConfig(mask="nm", n=1, m=4)):
        assert (mask.reshape(8, 48, 4).sum(axis=2) == 1).all()
    with pytest.raises(UserError, match="multiple of 4"):
        mask_bits(config_of("nm"), "p", "B", (192, 6))


def test_no_entry_kept_is_an_error():
    with pytest.raises(UserError, match="keeps no entry"):
        mask_bits(CapaBoostConfig(density=1e-6), "p", "A", (2, 2))


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_checksum(kind):
    assert checksum([("w", mask_bits(config_of(kind), "blocks.0.attn.qkv", "A.0", SHAPE))]) == GOLDEN[kind]


def test_another_process_draws_the_same():
    script = (
        "import numpy, torch; numpy.random.seed(7); torch.manual_seed(7); numpy.random.rand(5)\n"
        "from capaboost_core import CapaBoostConfig; from capaboost_core.sharing.masks import *\n"
        "mask_bits(CapaBoostConfig(), 'other', 'A.0', (3, 5))\n"
        f"print(checksum([('w', mask_bits(CapaBoostConfig(), 'blocks.0.attn.qkv', 'A.0', {SHAPE}))]))"
    )
    assert finish(start("-c", script)).strip() == GOLDEN["random"]


def test_kept_share_follows_the_formula():
    for num_tied in (1, 2, 3, 4):
        bits = mask_bits(CapaBoostConfig(num_tied=num_tied), "p", "A", (64, 768))
        assert np.isclose((bits != 0).mean(), 1 - 0.5**num_tied, atol=0.01)
