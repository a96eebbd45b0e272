"""One budget for every method: the size is the one that comes nearest, and the commands take it."""

import copy
import json
from dataclasses import replace

import pytest
import timm
import torch

from capaboost.commands import compare, flops, train_glue, train_vtab
from capaboost.report.models import Sizes, make_subject
from capaboost.report.sizes import describe_budget, parse_budget, within_budget
from capaboost_core import UserError, parameter_counts
from capaboost_core.methods import PRESETS, resolve_config
from tests.commands import start

with torch.device("meta"):
    SHALLOW = timm.create_model("test_vit", depth=2)
SUBJECT = replace(make_subject("test_vit", Sizes()), build=lambda: copy.deepcopy(SHALLOW))
KNOBS = [name for name, preset in PRESETS.items() if preset.budget]


def count(method) -> int:
    return parameter_counts(SUBJECT.inject(SUBJECT.build(), method)).trainable


@pytest.mark.parametrize("preset", KNOBS)
def test_no_other_value_of_the_size_comes_nearer(preset):
    method = resolve_config(preset)
    size_field = method.budget
    goal = round(1.3 * count(method)) + 7
    try:
        found = within_budget(SUBJECT, method, goal, nearest=True)
    except UserError as refusal:
        pytest.skip(str(refusal))
    value = getattr(found.method, size_field)
    assert found.trainable == count(found.method)
    assert value % method.budget_step == 0
    for other in (value - method.budget_step, value + method.budget_step):
        if other >= 1:
            assert abs(count(method.replace(**{size_field: other})) - goal) >= abs(found.trainable - goal)


def test_a_budget_below_the_least_gives_the_least():
    assert within_budget(SUBJECT, resolve_config("lora"), 1, nearest=True).method.r == 1


def test_a_budget_above_the_most_gives_the_least_value_that_has_it():
    found = within_budget(SUBJECT, resolve_config("lokr"), 10**9, nearest=True)
    counts = [count(found.method.replace(r=r)) for r in range(1, 3 * found.method.r)]
    assert found.trainable == max(counts)
    assert found.method.r == counts.index(max(counts)) + 1


@pytest.mark.parametrize(("share", "is_near"), [(1.0, True), (0.92, True), (0.88, False), (1.12, False)])
def test_a_size_that_is_more_than_a_tenth_off_is_refused(share, is_near):
    """LoRA of r = 1 has the least; a budget between two sizes is near to neither only if they lie far apart."""
    least = count(resolve_config("lora").replace(r=1))
    entries = round(least / share)
    assert is_near == (abs(least - entries) <= 0.1 * entries)
    if is_near:
        assert within_budget(SUBJECT, resolve_config("lora"), entries).trainable == least
        return
    with pytest.raises(UserError, match=f"than {least:,} parameters, with r 1; pass --nearest"):
        within_budget(SUBJECT, resolve_config("lora"), entries)
    assert within_budget(SUBJECT, resolve_config("lora"), entries, nearest=True).trainable == least


def test_what_cannot_be_that_large_is_refused_too():
    with pytest.raises(UserError, match="method lokr comes no nearer to a budget of 1,000,000,000 than"):
        within_budget(SUBJECT, resolve_config("lokr"), 10**9)


@pytest.mark.parametrize(("preset", "beyond"), [("vera", True), ("compacter", True), ("lora", False)])
def test_a_rank_beyond_the_width_is_said(preset, beyond):
    found = within_budget(SUBJECT, resolve_config(preset), 30_000, nearest=True)
    assert found.width == 64
    assert (found.method.r > found.width) == beyond
    assert ("times the model's width of 64" in describe_budget(found)) == beyond


@pytest.mark.parametrize("preset", ["linear", "full"])
def test_a_method_without_a_size_setting_says_so(preset):
    with pytest.raises(UserError, match="has no setting that a budget changes"):
        within_budget(SUBJECT, resolve_config(preset), 1000)


@pytest.mark.parametrize(
    ("text", "entries"), [("221184", 221184), ("220k", 220_000), ("0.22M", 220_000), ("1e5", 100_000)]
)
def test_budgets_are_read(text, entries):
    assert parse_budget(text) == entries


@pytest.mark.parametrize("text", ["", "M", "-3", "0", "nan", "1e20", "2 apples"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="type a number of parameters"):
        parse_budget(text)


def test_a_run_and_a_percentage_have_the_same_size_as_the_count(capsys):
    flags = ["--dataset", "digits", "--method", "capaboost-lora", "--model", "vit_base_patch16_224"]
    run = train_vtab.load(train_vtab.vtab_parser().parse_args([*flags, "--budget", "0.22M"]))
    assert run.adapter.r == 8  # 221,184 +- the masks' chance, as in the paper's Table 5
    assert "budget: capaboost-lora with r 8 trains 221,18" in capsys.readouterr().err
    share = train_vtab.load(train_vtab.vtab_parser().parse_args([*flags, "--budget-percent", "0.258"]))
    assert share.adapter.r == 8


def test_text_has_budgets_too():
    flags = ["--task", "cola", "--method", "lora", "--model", "roberta-base", "--budget", "1179648"]
    run = train_glue.load(train_glue.glue_parser().parse_args(flags))
    assert run.adapter.r == 32  # 12 layers x 2 matrices x 2 factors x 768 x 32


def test_flops_report_methods_at_one_budget(tmp_path, capsys):
    flags = ["--model", "vit_base_patch16_224", "--methods", "lora,capaboost-lora", "--budget", "0.22M"]
    assert flops.main(flags) == 0
    out = capsys.readouterr().out
    assert "lora with r 6 trains 221,184 parameters" in out
    assert "capaboost-lora with r 8 trains 221,18" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "x"], "budget is 'x'; type a number of parameters"),
        (["--budget-percent", "200"], "a budget of 200.0%: type a number above 0, up to 100"),
        (["--set", "model.kwargs.depth=2", "--budget", "10k"], "models without model.kwargs"),
        (["--method", "lora", "--budget", "100"], "pass --nearest (nearest: true in a sweep) to take that"),
        (["--nearest"], "--nearest belongs to --budget or --budget-percent"),
        (["--set", "adapter.r=4", "--budget", "10k"], "adapter.r is given beside a budget, which sets it"),
    ],
)
def test_a_wrong_budget_is_one_line(flags, message, tmp_path, capsys):
    run = ["--dataset", "digits", "--model", "test_vit", "--output-dir", str(tmp_path / "run")]
    assert train_vtab.main([*run, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_report_refuses_a_size_beside_a_budget(capsys):
    flags = ["--model", "vit_base_patch16_224", "--methods", "lora", "--budget", "0.22M", "--set", "adapter.r=4"]
    assert flops.main(flags) == 2
    assert "adapter.r is given beside a budget, which sets it; leave one of them out" in capsys.readouterr().err


def test_a_comparison_trains_each_method_within_the_budget_and_shows_one_table(tmp_path):
    flags = [
        "--dataset",
        "digits",
        "--model",
        "test_vit",
        "--methods",
        "lora,capaboost-lora,linear",
        "--budget",
        "10k",
    ]
    flags += ["--set", "model.img_size=32", "--set", "train.mixed_precision=no", "--workers", "2"]
    flags += ["--epochs", "1", "--set", "model.pretrained=false", "--output-dir", str(tmp_path), "--seeds", "1"]
    process = start("-m", "capaboost", "compare", *flags)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "budget: linear has no size setting" in err
    for text in ("Settings of lora: random weights", "Settings of capaboost-lora: random weights", "accuracy"):
        assert text in out
    for method in ("lora", "capaboost-lora"):
        result = json.loads((tmp_path / "digits" / method / "seed1" / "result.json").read_text())
        assert abs(result["trainable_parameters"] - 10_000) < 1200  # half of what one more r brings


@pytest.mark.parametrize("methods", ["lora,lora", "lora,", ""])
def test_a_list_of_methods_names_different_ones(methods, capsys):
    with pytest.raises(SystemExit):
        compare.main(["--dataset", "digits", "--methods", methods])
    assert "no list of different presets" in capsys.readouterr().err
