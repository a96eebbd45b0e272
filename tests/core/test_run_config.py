"""Configuration: files inherit, flags and --set win, and nothing wrong goes by unnoticed."""

import json
import math
import warnings
from dataclasses import dataclass

import pytest

from capaboost.training.settings import (
    TrainSection,
    build_run,
    load_run,
    merge_settings,
    origins,
    parse_assignments,
    read_config,
    sections_of,
    to_dict,
)
from capaboost_core import CapaBoostConfig, UserError
from capaboost_core.methods import resolve_config
from capaboost_core.settings import Settings, help_on, parse_yaml


@dataclass(frozen=True)
class Run:
    train: TrainSection
    adapter: CapaBoostConfig


def build(*assignments: str) -> Run:
    return build_run(Run, parse_assignments(list(assignments)))


def test_files_inherit_and_later_layers_win(tmp_path):
    (tmp_path / "_base.yaml").write_text("train: {lr: 1e-3, epochs: 100}\nadapter: {r: 8}\n")
    (tmp_path / "mid.yaml").write_text("base: _base.yaml\ntrain: {epochs: 50}\n")
    (tmp_path / "task.yaml").write_text("base: mid.yaml\nadapter: {r: 4, dropout: 0.1}\n")
    layers = merge_settings(read_config(tmp_path / "task.yaml"), parse_assignments(["train.lr=3e-4"]))
    run = build_run(Run, layers)
    assert (run.train.lr, run.train.epochs, run.adapter.r, run.adapter.dropout) == (3e-4, 50, 4, 0.1)


def test_values_have_their_types():
    run = build("train.lr=1e-3", "train.weight_decay=1", "train.mixed_precision=no", "adapter.targets=[attn.proj]")
    assert (run.train.lr, run.train.weight_decay, run.train.mixed_precision) == (1e-3, 1.0, "no")
    assert isinstance(run.train.weight_decay, float)
    assert run.adapter.targets == ("attn.proj",)
    assert build("adapter.density=5e-1", "train.mixed_precision=null").adapter.density == 0.5
    assert json.loads(json.dumps(to_dict(run)))["adapter"]["targets"] == ["attn.proj"]


WRONG = {
    "trian.lr=1": "unknown section 'trian'; did you mean train",
    "train.epoch=1": r"unknown setting train\.epoch; did you mean train\.epochs",
    "train.zzz=1": r"known: train\.epochs",
    "adapter.rank=4": r"unknown setting adapter\.rank",
    "train.epochs=0": r"train\.epochs is 0; type a whole number from 1 to 1000000",
    "train.epochs=2.5": r"train\.epochs is 2\.5; type a whole number",
    "train.epochs=true": "type a whole number",
    "train.epochs=null": "type a whole number",
    "train.lr=0": "a number above 0",
    "train.lr=.nan": "a number above 0",
    "train.lr=fast": r"train\.lr is 'fast'; type a number",
    "train.seed=-1": "a whole number from 0 to 4294967295",
    "train.batch_size=0": "from 1 to 1000000",
    "train.max_grad_norm=-1": "a number above 0",
    "train.schedule=step": "type cosine or linear",
    "train.mixed_precision=fp8": "type auto, no, fp16 or bf16",
    "train.warmup_ratio=1": r"train\.warmup_ratio is 1; type a number from 0 to below 1",
    "train.warmup_steps=-1": r"train\.warmup_steps is -1; type a whole number from 0 to 1000000000, or null",
    "train.gradient_accumulation_steps=65": r"at most train\.batch_size = 64",
    "adapter.r=0": r"adapter\.r is 0; type a whole number from 1 to 65536",
    "adapter.density=2": "density is 2",
    "train.lr": "not of the form section.key=value",
    "lr=1": "not of the form section.key=value",
    "train.lr=[1": "not YAML",
}


@pytest.mark.parametrize("assignment", WRONG)
def test_wrong_settings_are_named_in_one_line(assignment):
    with pytest.raises(UserError, match=WRONG[assignment]) as caught:
        build(assignment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: task.yaml", "inherits from itself"),
        ("base: none.yaml", "none.yaml: No such file"),
        ("train: [1", "is not YAML"),
        ("- 1", "must map section names"),
        ("train: 3", "'train' must map names to values"),
    ],
)
def test_wrong_files_are_named_in_one_line(tmp_path, text, message):
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_config(tmp_path / "task.yaml")
    assert "\n" not in str(caught.value)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\ntrain: {lr: 1}\n"


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: " + "[" * 3000, "more than 20 levels"),
        ("train: " + "[" * 3000 + "]" * 3000, "more than 20 levels"),
        (BOMB, "aliases such as .name are not read"),
        ("train: &t {lr: 1, more: *t}", "aliases"),
        ("train: {lr: 1, lr: 2}", "lr is given twice"),
        ("train: {lr: 1}\ntrain: {epochs: 2}", "train is given twice"),
        ("train: {1: 2}", "the name '1' is not a string"),
        ("train: {no: 2}", "the name 'no' is not a string"),
        ("train: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("train: {seed: " + "9" * 5000 + "}", "a value cannot be read"),
        ("train: {seed: 2024-99-99}", "a value cannot be read"),
        ("train: {seed: \x00}", "not YAML|not allowed"),
    ],
    ids=lambda value: value[:24],
)
def test_hostile_yaml_is_one_line(tmp_path, text, message):
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_config(tmp_path / "task.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        parse_assignments([f"train.lr={text.removeprefix('train: ')}, ]"])
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_numbers_as_people_write_them_are_read(tmp_path):
    (tmp_path / "task.yaml").write_bytes(
        b"\xef\xbb\xbftrain: {lr: 1e-3, weight_decay: 5E-1, min_lr: 1.e-6, epochs: 3}\n"
    )
    assert read_config(tmp_path / "task.yaml")["train"] == {
        "lr": 1e-3,
        "weight_decay": 0.5,
        "min_lr": 1e-6,
        "epochs": 3,
    }


@pytest.mark.hard_case(28)
def test_a_small_rate_lowers_the_defaults_and_refuses_what_was_chosen_above_it(tmp_path):
    (tmp_path / "run.yaml").write_text("train: {lr: 1e-3, min_lr: 1.0e-5, warmup_lr: 1.0e-6}\n")
    train = load_run(Run, tmp_path / "run.yaml", {"train": {"lr": 1e-7}}, None, []).train
    assert (train.min_lr, train.warmup_lr) == (1e-7, 1e-7)
    rates = [train.schedule_of(100)(step) for step in range(100)]
    assert max(rates) <= 1e-7
    assert train.replace(lr=1e-3).min_lr == 1e-5
    for name in ("min_lr", "warmup_lr"):
        with pytest.raises(UserError, match=rf"train\.{name} is 1e-06; type at most train\.lr = 1e-07"):
            load_run(Run, tmp_path / "run.yaml", {"train": {"lr": 1e-7}}, None, [f"train.{name}=1e-6"])


NOT_FINITE = [f"train.{name}={value}" for name in ("lr", "min_lr", "warmup_lr", "weight_decay", "max_grad_norm")
              for value in (".inf", ".nan", "1e400", "-1")]  # fmt: skip


@pytest.mark.hard_case(29, 31, "messages")
@pytest.mark.parametrize(
    "assignment",
    [
        *NOT_FINITE,
        "train.max_grad_norm=0",
        "train.seed=4294967296",
        f"train.batch_size={2**70}",
        f"train.epochs={2**70}",
        "train.epochs=",
        "train.lr=",
        "adapter.r=1000000000",
        "adapter.alpha=1e300",
        "adapter.targets=",
        "adapter.targets=''",
    ],
)
def test_numbers_are_finite_and_in_range(assignment):
    with pytest.raises(UserError, match=r"; type |must fit") as caught:
        build(assignment)
    assert str(caught.value).startswith(assignment.partition("=")[0])
    assert "\n" not in str(caught.value)


@pytest.mark.hard_case(34)
def test_a_preset_leaves_out_of_the_file_what_its_method_does_not_use(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("adapter: {r: 16, alpha: 32, dropout: 0.1, init: official, targets: all-linear, seed: 5}\n")
    assert load_run(Run, path, {}, "linear", []).adapter == CapaBoostConfig("linear")
    assert load_run(Run, path, {}, "lora", []).adapter.alpha == 32
    assert load_run(Run, path, {}, "capaboost-prefix", []).adapter == CapaBoostConfig("prefix", r=16, seed=5)
    with pytest.raises(UserError, match=r"adapter\.r is 4; it means nothing to method linear; drop it"):
        load_run(Run, path, {}, "linear", ["adapter.r=4"])
    groups = ["adapter.mask=nm", "adapter.n=1", "adapter.m=4"]
    assert load_run(Run, path, {}, "capaboost-lora", groups).adapter.density == 0.25
    with pytest.raises(UserError, match="density follows from n and m"):
        load_run(Run, path, {}, "capaboost-lora", [*groups, "adapter.density=0.5"])


def test_the_help_has_every_setting_within_the_width():
    text = help_on(sections_of(Run), 79)
    for section, cls in sections_of(Run).items():
        for name, field in cls.model_fields.items():
            assert f"  {section}.{name}=" in text
            assert field.description
    assert max(map(len, text.splitlines())) < 80
    assert "  train.lr=0.001\n      Peak learning rate of AdamW. Type a number above 0, such as 1e-3.\n" in text


def test_the_help_on_a_preset_reads_no_deprecated_attribute():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "  adapter.r=" in help_on({"adapter": resolve_config("lora")})


def test_a_setting_without_default_has_to_be_given():
    class Data(Settings):
        dataset: str

    with pytest.raises(UserError, match=r"data\.dataset is not set"):
        build_run(replace_hints(Data), {})


def replace_hints(section: type) -> type:
    return dataclass(frozen=True)(type("Only", (), {"__annotations__": {"data": section}}))


def test_flags_win_over_the_file_the_preset_over_flags_and_assignments_over_all(tmp_path):
    (tmp_path / "run.yaml").write_text("train: {lr: 1e-3, epochs: 9}\nadapter: {r: 4, num_tied: 3, dropout: 0.1}\n")
    flags = {"train": {"lr": 2e-3}}
    run = load_run(Run, tmp_path / "run.yaml", flags, "padapter", ["adapter.num_tied=5"])
    assert (run.train.lr, run.train.epochs) == (2e-3, 9)
    assert (run.adapter.method, run.adapter.num_tied, run.adapter.density) == ("padapter", 5, 1.0)
    assert (run.adapter.r, run.adapter.dropout) == (4, 0.1)
    prefix = load_run(Run, tmp_path / "run.yaml", {}, "capaboost-prefix", []).adapter
    assert (prefix.method, prefix.r) == ("prefix", 4)
    with pytest.raises(UserError, match="unknown preset"):
        load_run(Run, tmp_path / "run.yaml", {}, "lra", [])


def test_a_file_has_settings_for_a_preset_alone(tmp_path):
    methods = "methods: {full: {train: {lr: 1e-5}}, lora: {adapter: {r: 2}}}\n"
    (tmp_path / "_base.yaml").write_text("train: {lr: 1e-3, epochs: 9}\nadapter: {r: 8}\n" + methods)
    (tmp_path / "task.yaml").write_text("base: _base.yaml\ntrain: {lr: 2e-3}\nmethods: {full: {train: {epochs: 3}}}\n")

    def run(method, flags=(), *assignments):
        return load_run(Run, tmp_path / "task.yaml", dict(flags), method, list(assignments))

    runs = map(run, (None, "linear", "full", "lora"))
    assert [(r.train.lr, r.train.epochs, getattr(r.adapter, "r", None)) for r in runs] == [
        (2e-3, 9, 8), (2e-3, 9, None), (1e-5, 3, None), (2e-3, 9, 2),
    ]  # fmt: skip
    assert run("full", {"train": {"lr": 3e-5}}).train.lr == 3e-5
    assert run("full", {}, "train.lr=4e-5").train.lr == 4e-5


def test_a_file_gives_way_to_another_for_a_model(tmp_path):
    files = {
        "_base": "models: {small: _small.yaml}\ntrain: {lr: 1e-3, epochs: 9}\nmethods: {full: {train: {lr: 1e-5}}}\n",
        "_small": "base: _base.yaml\ntrain: {lr: 2e-3, batch_size: 8}\nmethods: {full: {train: {epochs: 3}}}\n",
        "task": "base: _base.yaml\ntrain: {batch_size: 4}\n",
        "own": "base: task.yaml\nmodel: {name: small.tag}\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)

    def train(file, *of):
        return read_config(tmp_path / f"{file}.yaml", *of)["train"]

    plain, small = {"lr": 1e-3, "epochs": 9}, {"lr": 2e-3, "epochs": 9, "batch_size": 8}
    assert train("_base") == train("_base", None, "large") == plain
    assert train("own", None, "large") == plain | {"batch_size": 4}
    assert train("_base", None, "small") == train("_small") == train("_small", None, "small") == small
    assert train("task", None, "small.tag") == train("own") == small | {"batch_size": 4}
    assert train("task", "full", "small") == {"lr": 1e-5, "epochs": 3, "batch_size": 4}
    typed = origins(tmp_path / "task.yaml", {"model": {"name": "small"}}, "full", [])
    assert typed["train.batch_size"] == "task.yaml"
    assert (typed["train.lr"], typed["train.epochs"]) == ("_base.yaml for full", "_small.yaml for full")
    assert origins(tmp_path / "task.yaml", {}, None, ["model.name=small"])["train.lr"] == "_small.yaml"


@pytest.mark.parametrize("models", ["3", "[a.yaml]", "{small: 3}", "{small: {train: {lr: 1}}}"])
def test_wrong_files_of_models_are_one_line(tmp_path, models):
    (tmp_path / "task.yaml").write_text(f"models: {models}\n")
    with pytest.raises(UserError, match="'models' must map names of models to files") as caught:
        read_config(tmp_path / "task.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("{lra: {train: {lr: 1}}}", "unknown preset 'lra'"),
        ("{lora: {train: 3}}", "'train' must map names to values"),
        ("{lora: 3}", "'methods' must map names to values"),
        ("{lora: {train: {epoch: 3}}}", "did you mean train.epochs"),
    ],
)
def test_wrong_settings_of_a_preset_are_named_in_one_line(tmp_path, methods, message):
    (tmp_path / "task.yaml").write_text(f"methods: {methods}\n")
    with pytest.raises(UserError, match=message) as caught:
        load_run(Run, tmp_path / "task.yaml", {}, "lora", [])
    assert "\n" not in str(caught.value)


def test_assignments_reach_any_depth():
    assert parse_assignments(["model.kwargs.a=1", "model.kwargs.b=x", "model.name=n"]) == {
        "model": {"kwargs": {"a": 1, "b": "x"}, "name": "n"}
    }
    for wrong in ("a..b=1", ".a=1", "a.=1"):
        with pytest.raises(UserError, match=r"section\.key=value"):
            parse_assignments([wrong])


NUMBERS = {  # what people type, and what YAML 1.2 makes of it; in YAML 1.1 the first six are octal or base 60
    "012": 12,
    "-010": -10,
    "[010, 011]": [10, 11],
    "08": 8,
    "1:30": "1:30",
    "1:30.5": "1:30.5",
    "0x1f": 31,
    "1_000": 1000,
    "0": 0,
    "+3": 3,
    "1e-3": 1e-3,
    "1E3": 1000.0,
    "0.10": 0.1,
    "5.": 5.0,
    ".5": 0.5,
    "00.5": 0.5,
    "1.2.3": "1.2.3",
    "-.inf": -math.inf,
    "'012'": "012",
    "1-2": "1-2",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read_as_they_look(text):
    value = parse_yaml(text)
    assert (value, type(value)) == (NUMBERS[text], type(NUMBERS[text]))


def test_a_time_is_no_rate(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train: {epochs: 012}\n")
    assert read_config(path) == {"train": {"epochs": 12}}
    with pytest.raises(UserError, match=r"train\.lr is '1:30'; type a number above 0"):
        TrainSection.from_dict(parse_assignments(["train.lr=1:30"])["train"], "train.")
