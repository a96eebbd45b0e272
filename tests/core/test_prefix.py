"""The tied prefix: d masked copies side by side, visible under every mask, on any attention that is registered."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from capaboost_core import (
    CapaBoostConfig,
    Plan,
    Target,
    UserError,
    disable,
    inject,
    load_adapter,
    merge,
    parameter_counts,
    resolve_config,
    save_adapter,
    trainable_parameters,
)
from capaboost_core.layers import Adapted
from capaboost_core.methods.prefix import Prefix, PrefixTuning
from capaboost_core.sharing.masks import mask_bits
from tests.core.prefix_by_hand import copies_by_hand

CONFIGS = [
    CapaBoostConfig("prefix", r=3, num_tied=1, density=1.0),
    CapaBoostConfig("prefix", r=3),
    CapaBoostConfig("prefix", r=2, num_tied=4, density=0.3, seed=7),
    CapaBoostConfig("prefix", r=3, mask="nm", n=1, m=4),
    CapaBoostConfig("prefix", r=3, mask="same"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_keys_and_values_are_the_masked_copies_before_the_tokens(config):
    prefix = Prefix(config, "encoder.attn", 8, torch.empty(1, dtype=torch.float64))
    tokens = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    length = config.num_tied * config.r
    for name, tied, got in zip(
        ("keys", "values"), (prefix.keys, prefix.values), prefix.prepend(tokens, tokens), strict=True
    ):
        copies = copies_by_hand(config, "encoder.attn", name, tied, 8)
        assert got.shape == (3, 2, length + 5, 4)
        assert torch.equal(got[:, :, length:], tokens)
        for head in range(2):
            assert torch.equal(got[1, head, :length], copies[:, 4 * head : 4 * head + 4])
    if config.num_tied > 1 and config.mask == "random":
        assert not torch.equal(prefix.keys.bits, prefix.values.bits)


SEEN = [
    (torch.tensor([[True, False], [True, True]]), True),
    (torch.tensor([[[[0.0, -1e9]]]]), 0.0),
    (torch.tensor([[1, 0], [1, 1]]), 1),
]


@pytest.mark.parametrize(("mask", "visible"), SEEN, ids=["bool", "added", "two dimensions"])
def test_a_mask_shows_the_prefix(mask, visible):
    prefix = Prefix(CapaBoostConfig("prefix", r=3), "attn", 8, torch.empty(1))
    extended = prefix.extend(mask)
    assert extended.dtype == mask.dtype
    assert torch.equal(extended[..., :6], torch.full((*mask.shape[:-1], 6), visible, dtype=mask.dtype))
    assert torch.equal(extended[..., 6:], mask)
    assert prefix.extend(None) is None


class Attention(nn.Module):
    """One head, in some framework."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, 16)

    def forward(self, x):
        k, v = self.kv(x).chunk(2, dim=-1)
        return self.attend(self.q(x), k, v)

    def attend(self, q, k, v):
        return F.softmax(q @ k.transpose(-2, -1), dim=-1) @ v


class PrefixAttention(Adapted, Attention):
    def __init__(self, base, config, target):
        self.adopt(base, target.path)
        self.prefix = Prefix(config, target.path, 8, base.q.weight)

    def attend(self, q, k, v):
        if self.enabled:
            k, v = (t[:, 0] for t in self.prefix.prepend(k[:, None], v[:, None]))
        return super().attend(q, k, v)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Attention(), Attention(), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean(1))


PLAN = Plan((Target("first"), Target("second")), head=("head",))
X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(PrefixTuning.layers, Attention, PrefixAttention)


def adapted(config=CONFIGS[1]):
    torch.manual_seed(0)
    return inject(Net(), config, PLAN)


def test_base_stays_and_only_prefix_and_head_are_trained():
    base, model = Net(), adapted()
    assert base.state_dict().keys() <= model.state_dict().keys()
    model.load_state_dict(base.state_dict())  # a base checkpoint loads strictly
    names = {f"{layer}.prefix.{name}.packed" for layer in ("first", "second") for name in ("keys", "values")}
    assert trainable_parameters(model).keys() == names | {"head.weight", "head.bias"}
    assert not torch.equal(model(X), base(X))
    with disable(model):
        assert torch.equal(model(X), base(X))
    model(X).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in trainable_parameters(model).values())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_counts_by_hand(config):
    counts = parameter_counts(adapted(config))
    masks = [
        mask_bits(config, path, name, (config.r, 8)) for path in ("first", "second") for name in ("keys", "values")
    ]
    assert counts.trainable == sum(int((bits != 0).sum()) for bits in masks)
    assert counts.head == 18
    assert counts.total == 2 * (8 * 8 + 8 + 16 * 8 + 16)
    if config.density == 1:
        assert counts.trainable == 2 * 2 * config.r * 8


def test_round_trip_into_a_fresh_base(tmp_path):
    model = adapted()
    for parameter in trainable_parameters(model).values():
        nn.init.normal_(parameter)
    save_adapter(model, tmp_path)
    torch.manual_seed(0)
    fresh = Net()
    loaded = load_adapter(fresh, tmp_path)
    assert torch.equal(loaded(X), model(X))
    with pytest.raises(UserError, match="prefix has a nonlinearity"):
        merge(loaded)


def test_start_is_small_and_seeded():
    values = torch.cat(
        [p.flatten() for n, p in adapted(CapaBoostConfig("prefix", r=500)).named_parameters() if "packed" in n]
    )
    assert values.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(values.mean().item()) < 1e-3
    half = inject(Net().bfloat16(), CONFIGS[1], PLAN)
    assert half.first.prefix.keys.packed.dtype == torch.float32
    assert half(X.bfloat16()).dtype == torch.bfloat16


def test_an_unregistered_attention_is_refused_and_stays(monkeypatch):
    monkeypatch.setattr(PrefixTuning, "layers", {})
    model = Net()
    with pytest.raises(UserError, match=r"no form for first.*import capaboost_vision or capaboost_text"):
        inject(model, CONFIGS[1], PLAN)
    with pytest.raises(UserError, match=r"capaboost_text\.inject"):
        inject(model, CONFIGS[1])
    assert type(model.first) is Attention
    assert all(p.requires_grad for p in model.parameters())


def test_settings_without_a_meaning_are_refused():
    with pytest.raises(UserError, match=r"alpha is 8; it means nothing to method prefix; drop it"):
        CapaBoostConfig("prefix", alpha=8)
    with pytest.raises(UserError, match=r"dropout is 0\.1; it means nothing"):
        resolve_config("capaboost-prefix", dropout=0.1)
    plain = resolve_config("prefix", r=64)
    assert (plain.method, plain.num_tied, plain.density) == ("prefix", 1, 1.0)
    assert resolve_config("capaboost-prefix") == CapaBoostConfig("prefix")
