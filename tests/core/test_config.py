"""The configuration refuses what it cannot mean, in one line that says what to type."""

import copy
import pickle

import pytest
from pydantic import ValidationError

from capaboost_core import PRESETS, CapaBoostConfig, UserError, resolve_config

WRONG = [
    ({"method": "no_such"}, "padapter"),
    ({"r": 0}, "from 1 to 65536"),
    ({"r": 2.5}, "whole number"),
    ({"r": True}, "whole number"),
    ({"num_tied": 0}, "from 1 to 8"),
    ({"num_tied": 9}, "from 1 to 8"),
    ({"density": 0}, "above 0"),
    ({"density": 1.5}, "at most 1"),
    ({"density": "half"}, "number"),
    ({"density": float("nan")}, "at most 1"),
    ({"alpha": 0}, "alpha = r"),
    ({"dropout": 1.0}, "below 1"),
    ({"seed": -1}, "from 0 to 18446744073709551615"),
    ({"mask": "block"}, "nm"),
    ({"mask": "nm"}, "n: 2 and m: 4"),
    ({"mask": "nm", "n": 5, "m": 4}, "4 or less"),
    ({"mask": "nm", "n": 2, "m": 4, "density": 0.7}, "0.5"),
    ({"n": 2, "m": 4}, "mask: nm"),
    ({"init": "zero"}, "official"),
    ({"targets": []}, "attention-qv"),
    ({"targets": 3}, "attention-qv"),
    ({"rnak": 4}, "known: num_tied, "),
    ({"densty": 0.5}, "did you mean density"),
]


@pytest.mark.parametrize(("values", "hint"), WRONG, ids=[str(values) for values, _ in WRONG])
def test_wrong_values_say_what_to_type(values, hint):
    with pytest.raises(UserError) as caught:
        CapaBoostConfig.from_dict(values)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dict_and_yaml_round_trips(tmp_path):
    config = CapaBoostConfig("padapter", r=4, mask="nm", n=1, m=4, alpha=16, targets=["attn.proj", "mlp.fc2"])
    assert config.density == 0.25
    assert CapaBoostConfig.from_dict(config.to_dict()) == config
    path = tmp_path / "adapter.yaml"
    path.write_text("method: padapter\nr: 4\nmask: nm\nn: 1\nm: 4\nalpha: 16\ntargets: [attn.proj, mlp.fc2]\n")
    assert CapaBoostConfig.from_yaml(path) == config


@pytest.mark.parametrize(("text", "hint"), [(None, "path of a YAML"), ("r: [", "not YAML"), ("- r", "must map")])
def test_wrong_yaml_files(tmp_path, text, hint):
    path = tmp_path / "adapter.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=hint):
        CapaBoostConfig.from_yaml(path)


def test_presets_and_their_changes():
    assert resolve_config("capaboost-lora", r=16) == CapaBoostConfig("lora", r=16)
    assert (PRESETS["lora"].num_tied, PRESETS["lora"].density) == (1, 1.0)
    with pytest.raises(UserError, match="did you mean lora"):
        resolve_config("qlora")
    with pytest.raises(UserError, match="preset name"):
        resolve_config(8)


ADAPTERS = ("padapter", "hadapter")
BASELINES = ("linear", "full")
UNUSED = [
    *(({"method": method, name: value}) for method in BASELINES for name, value in {
        "r": 4, "num_tied": 3, "density": 0.25, "mask": "same", "seed": 1, "alpha": 8, "dropout": 0.1,
        "init": "official", "targets": "all-linear",
    }.items()),
    *({"method": method, "targets": "all-linear"} for method in (*ADAPTERS, "prefix")),
    *({"method": "prefix", name: value} for name, value in {"alpha": 8, "dropout": 0.1, "init": "official"}.items()),
    {"num_tied": 1, "density": 1.0, "seed": 1},
    {"num_tied": 1, "density": 1.0, "mask": "same"},
    {"mask": "dropout", "seed": 1},
]  # fmt: skip


@pytest.mark.hard_case(34)
@pytest.mark.parametrize("values", UNUSED, ids=str)
def test_a_setting_that_means_nothing_is_refused(values):
    with pytest.raises(UserError, match=r"it means nothing .*; drop it"):
        CapaBoostConfig.from_dict(values)


@pytest.mark.hard_case(34)
def test_density_beside_groups_is_refused_unless_it_is_theirs():
    with pytest.raises(UserError, match=r"density follows from n and m .* set it to 0\.25"):
        CapaBoostConfig(mask="nm", n=1, m=4, density=0.5)
    config = CapaBoostConfig(mask="nm", n=1, m=4)
    assert config.density == 0.25
    assert CapaBoostConfig.from_dict(config.to_dict()) == config
    assert (
        config.replace(n=2).density == resolve_config(CapaBoostConfig.from_dict(config.to_dict()), n=2).density == 0.5
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_values(name):
    config = PRESETS[name]
    again = CapaBoostConfig.from_dict(config.to_dict())
    assert again == config == pickle.loads(pickle.dumps(config)) == copy.deepcopy(config)
    assert hash(again) == hash(config)
    with pytest.raises(ValidationError, match="frozen"):
        config.r = 3


def test_records_of_earlier_versions_load():
    earlier = {"method": "linear", "r": 32, "num_tied": 1, "density": 1.0, "mask": "random", "n": None, "m": None}
    earlier |= {"seed": 3, "alpha": 48.0, "dropout": 0.1, "init": "official", "targets": "attention-qv"}
    assert CapaBoostConfig.from_record(earlier) == PRESETS["linear"]
    assert CapaBoostConfig.from_record(earlier | {"method": "padapter"}).r == 32
    for wrong in ({"rank": 3}, {"method": ["lora"]}, {"method": "lora", "r": "8"}, [], 3):
        with pytest.raises(UserError) as caught:
            CapaBoostConfig.from_record(wrong)
        assert "\n" not in str(caught.value)


OUT_OF_RANGE = [{"r": 10**9}, {"alpha": 1e300}, {"alpha": 1e-300}, {"alpha": float("inf")}, {"seed": 2**64}]
OUT_OF_RANGE += [{"r": 10**5000}, {"density": 10**400}, {"targets": ""}, {"targets": ["a", 3]}]


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("values", OUT_OF_RANGE, ids=lambda values: f"{next(iter(values))}")
def test_numbers_out_of_range_are_refused(values):
    with pytest.raises(UserError) as caught:
        CapaBoostConfig.from_dict(values)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
