"""The benchmarks measure what they say: fair repeats, true peaks, peers that compute what they stand for."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import inference, masks, memory, parts, peers, sparse, step, tables, whole_run
from benchmarks import tables as make_tables
from benchmarks.command import run_command
from benchmarks.models import WORKLOADS, logits_of, loss_of
from benchmarks.peers import sizes_of
from benchmarks.timing import Pair, Repeats, Stopwatch, compare, interleave, spread
from capaboost_core import UserError
from capaboost_core.methods.reference import LoopedLinear

CPU = torch.device("cpu")
MODELS = ("tiny-vit", "tiny-roberta")
needs_peft = pytest.mark.skipif(not peers.find_spec("peft"), reason="the extra [peft] is not installed")


def recorded(names, seed, **plan):
    calls = []
    values = interleave(
        {name: lambda name=name: calls.append(name) or float(len(calls)) for name in names},
        Repeats(**{"repeats": 3, "warmups": 1, "minutes": 1} | plan, seed=seed),
    )
    return calls, values


def test_every_repeat_runs_each_peer_once_in_a_seeded_random_order():
    names = ["a", "b", "c", "d"]
    calls, values = recorded(names, seed=0)
    rounds = [calls[start : start + 4] for start in range(0, len(calls), 4)]
    assert len(rounds) == 4
    assert all(sorted(one) == names for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert recorded(names, seed=0)[0] == calls
    assert recorded(names, seed=1)[0] != calls
    assert min(v for one in values.values() for v in one) == 5  # the four warm-ups are not among them
    assert all(len(one) == 3 for one in values.values())


def test_time_limit_leaves_one_whole_repeat():
    _, values = recorded(["a", "b"], seed=0, minutes=0)
    assert [len(one) for one in values.values()] == [1, 1]


def test_ratios_are_taken_repeat_by_repeat():
    peers = {"a": {"values": [1.0, 20.0, 300.0], "size": 3}, "b": {"values": [2.0, 20.0, 100.0], "size": 4}}
    found = compare(Pair("a", "b", high=0.99), peers)
    assert (found["quartile_1"], found["median"], found["quartile_3"]) == (0.75, 1.0, 2.0)
    assert found["met"] is False
    assert compare(Pair("a", "b", low=0.5, high=1.0), peers)["met"] is True
    assert compare(Pair("a", "b", high=0.5), peers, bounded=False)["met"] is None
    assert compare(Pair("a", "b", high=0.76, figure="size"), peers)["median"] == 0.75
    assert spread([5.0]) == {"median": 5.0, "quartile_1": 5.0, "quartile_3": 5.0}


def test_stopwatch_fills_a_block_of_time_with_calls(monkeypatch):
    calls = []
    monkeypatch.setattr("benchmarks.timing.time", SimpleNamespace(perf_counter=lambda: len(calls) / 1024))
    watch = Stopwatch(lambda: calls.append(0), CPU)
    assert watch() == 1 / 1024
    assert len(calls) == 1
    assert watch() == 1 / 1024
    assert len(calls) == 1 + math.ceil(0.2 * 1024)


def test_looped_reference_is_equation_4():
    torch.manual_seed(0)
    base = nn.Linear(6, 9)
    layer = LoopedLinear(base, ((0, 3), (6, 9)), rank=2, num_tied=3, density=0.5, scale=1.5)
    for parameter in (*layer.A, *layer.B):
        nn.init.normal_(parameter)
    weight = base.weight.detach().clone()
    modules = zip(layer.slices, layer.A, layer.B, layer.masks_A, layer.masks_B, strict=True)
    for (start, stop), A, B, masks_A, masks_B in modules:
        for mask_A, mask_B in zip(masks_A, masks_B, strict=True):
            weight[start:stop] += 1.5 * (B * mask_B) @ (A * mask_A)
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(x), x @ weight.T + base.bias)


def build(name, model):
    torch.manual_seed(0)
    workload = WORKLOADS[model]
    base = workload.create().eval()
    return base, peers.build_peer(name, base, workload, rank=8), workload.inputs(2)


@pytest.mark.parametrize("model", MODELS)
def test_floor_is_the_frozen_model_with_gradients_as_far_back_as_an_adapter_needs(model):
    base, floor, inputs = build("floor", model)
    biases = peers.adapter_parameters(floor)
    assert all("bias" in name and ".0." in name for name in biases)
    with torch.no_grad():
        for name, bias in biases.items():
            bias.copy_(base.get_parameter(name))
    floor.model.eval()
    torch.testing.assert_close(logits_of(floor.model, inputs), logits_of(base, inputs))
    loss_of(floor.model, inputs, torch.tensor([0, 1])).backward()
    assert all(bias.grad.abs().sum() > 0 for bias in biases.values())
    frozen = [p for n, p in floor.model.named_parameters() if n not in biases and not n.startswith(floor.head)]
    assert frozen
    assert not any(p.requires_grad for p in frozen)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["capaboost-d2", "looped-d2", pytest.param("peft", marks=needs_peft)])
def test_peers_are_alive_and_leave_the_base_alone(name, model):
    base, peer, inputs = build(name, model)
    with torch.no_grad():
        before = logits_of(base, inputs)
        assert (logits_of(peer.model.eval(), inputs) - before).abs().max() > 1e-5
    optimizer = torch.optim.AdamW([p for p in peer.model.parameters() if p.requires_grad], fused=True)
    loss_of(peer.model.train(), inputs, torch.tensor([0, 1])).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in peers.adapter_parameters(peer).values())
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(logits_of(base, inputs), before)
    addresses = {parameter.data_ptr() for parameter in base.parameters()}
    assert len(addresses & {parameter.data_ptr() for parameter in peer.model.parameters()}) > len(addresses) / 2


@pytest.mark.parametrize("name", ["capaboost-d2-merged", pytest.param("peft-merged", marks=needs_peft)])
def test_merged_peers_change_weights_of_their_own(name):
    base, peer, inputs = build(name, "tiny-vit")
    again, _, _ = build("base", "tiny-vit")
    with torch.no_grad():
        assert torch.equal(logits_of(base, inputs), logits_of(again, inputs))
        assert not torch.equal(logits_of(peer.model.eval(), inputs), logits_of(base, inputs))


@needs_peft
@pytest.mark.parametrize("model", MODELS)
def test_sizes_leave_the_head_out_and_plain_lora_has_pefts(model):
    sizes = {}
    for name in ("capaboost-d1", "capaboost-d2", "peft", "peft-2r", "floor"):
        _, peer, inputs = build(name, model)
        optimizer = torch.optim.AdamW([p for p in peer.model.parameters() if p.requires_grad])
        loss_of(peer.model, inputs, torch.tensor([0, 1])).backward()
        optimizer.step()
        sizes[name] = sizes_of(peer, optimizer)
    counts = {name: found.get("trainable_parameters") for name, found in sizes.items()}
    assert counts["peft"] == counts["capaboost-d1"] == 2 * 2 * 2 * 8 * 32  # blocks, q and v, A and B
    assert counts["peft-2r"] == 2 * counts["peft"]
    assert counts["capaboost-d2"] <= 0.76 * counts["peft"]
    assert counts["floor"] is None
    for found in (sizes["capaboost-d2"], sizes["peft"]):
        values = 4 * found["trainable_parameters"]
        assert 2 * values <= found["optimizer_bytes"] < 2 * values + 100
        assert values < found["file_bytes"] < values + 1500


def test_sparse_factors_keep_two_of_each_four_along_the_sum():
    for factor in sparse.factors(rank=8, num_tied=2, width=16):
        assert (factor.view(factor.shape[0], -1, 4).count_nonzero(-1) == 2).all()
        assert (factor.view(factor.shape[0], -1, 4) != 0).sum() == factor.numel() / 2


@pytest.mark.parametrize(("name", "rank"), [("capaboost-d1", 8), ("capaboost-d2", 16)])
def test_parts_of_a_step_count_every_product_of_the_adapted_layers_once(name, rank):
    _, peer, inputs = build(name, "tiny-vit")
    found = []
    seconds = parts.make_measure(lambda: loss_of(peer.model, inputs, torch.tensor([0, 1])).backward(), found)()
    (times,) = found
    assert 0 < times["frozen_ms"] + times["small_ms"] + times["copies_ms"] < 1000 * seconds
    assert (times["copies_ms"] > 0) == (name == "capaboost-d2")  # plain LoRA has nothing to mask
    tokens, width, blocks = 2 * 5, 32, 2
    of_factor = tokens * width * 2 * rank  # A or B of q and v, once over the tokens
    small = (6 * blocks - 1) * of_factor  # the first block needs no gradient of its input
    frozen = (2 * blocks - 1) * tokens * width * 3 * width
    assert times["small_at_frozen_rate_ms"] / times["frozen_ms"] == pytest.approx(small / frozen)


QUICK = ["--quick", "--device", "cpu", "--threads", "1"]
COMMANDS = {
    "step": (step.main, ["--model", "roberta-base", "--peers", "floor", "capaboost-d2", "looped-d2"]),
    "inference": (inference.main, ["--peers", "base", "capaboost-d2", "capaboost-d2-merged"]),
    "parts": (parts.main, ["--peers", "capaboost-d2"]),
    "memory": (memory.main, ["--precision", "bf16", "--peers", "floor", "capaboost-d2"]),
    "masks": (masks.main, []),
    "whole_run": (whole_run.main, []),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_leaves_a_complete_result(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    main, arguments = COMMANDS[name]
    assert run_command(main, [*QUICK, *arguments, "--results", str(tmp_path)]) == 0
    (result,) = make_tables.read_results(tmp_path).values()
    assert result["benchmark"] == name
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result["settings"]["seed"] == 0
    assert {"commit", "dirty"} == result["git"].keys()
    assert ", MALLOC_ARENA_MAX=4" in tables.markdown(result)
    for peer in result["peers"].values():
        assert len(peer["values"]) == result["settings"]["repeats"] == 2
        assert min(peer["values"]) > 0
    if name == "step":
        floor, tied, looped = (peer["multiply_adds"] for peer in result["peers"].values())
        assert floor < tied == looped  # one product of d*r, or d products of r
    assert (
        len(result["ratios"]) >= {"step": 2, "inference": 2, "parts": 0, "memory": 1, "masks": 0, "whole_run": 3}[name]
    )


WRONG = {
    "unknown peer": (step.main, ["--peers", "lora"], "no peer 'lora'"),
    "no repeats": (step.main, ["--repeats", "0"], "--repeats is 0"),
    "no rank": (inference.main, ["--rank", "0"], "--rank is 0"),
    "compiled parts": (parts.main, ["--device", "cpu", "--compile"], "without --compile"),
    "parts of other layers": (parts.main, ["--device", "cpu", "--peers", "looped-d2"], "--peers capaboost-d1"),
    "parts of merged layers": (parts.main, ["--device", "cpu", "--peers", "capaboost-d2-merged"], "unmerged layers"),
    "no sparse cores": (sparse.main, ["--device", "cpu"], "compute capability 8.0"),
    "unknown model": (whole_run.main, ["--model", "vit"], "no model 'vit'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(case, capsys):
    main, arguments, message = WRONG[case]
    assert run_command(main, [*arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("wanted", [["peft"], ["capaboost-d2", "peft"]])
def test_without_peft_one_line_names_the_extra(wanted, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    assert run_command(step.main, ["--peers", *wanted]) == 2
    error = capsys.readouterr().err
    assert "pip install 'peft" in error
    assert error.endswith("--peers capaboost-d2\n")
    peers.check_peers(["capaboost-d2", "looped-d2", "floor"])


def test_tables_fill_their_regions_again_and_again(tmp_path):
    masks.main([*QUICK, "--results", str(tmp_path)])
    page = tmp_path / "page.md"
    page.write_text((Path(__file__).parents[1] / "benchmarks" / "results" / "README.md").read_text())
    for _ in range(2):
        make_tables.main(["--results", str(tmp_path), "--page", str(page)])
    text = page.read_text()
    assert text.count("| tiny, d = 2 |") == 1
    assert text.count("Not measured yet.") == len(make_tables.BENCHMARKS)  # and the summary, but for the masks


def test_the_summary_has_a_line_for_each_result_with_peers():
    ratio = {"of": "capaboost-d2", "figure": None, "quartile_1": 0.9, "quartile_3": 1}
    ratios = [ratio | {"to": "peft", "median": 0.95}, ratio | {"to": "floor", "median": 0.96}]
    ratios.append(ratio | {"to": "peft", "median": 0.75, "figure": "file_bytes"})
    settings = {"model": "vit", "batch": 8, "precision": "fp32", "mode": "eager"}
    step = {"benchmark": "step", "settings": settings, "device": "cpu", "allocator": {}, "unit": "s", "ratios": ratios}
    counted = step | {"benchmark": "memory", "unit": "peak, MiB"}
    lines = tables.summary([step, counted, {"benchmark": "masks", "unit": "s", "ratios": []}]).splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].split("|")][1:-1]
    assert cells[:2] == ["step, vit, batch 8, fp32, eager", "cpu"]
    assert cells[2:4] == ["0.950 (0.900 to 1.000)", "0.960 (0.900 to 1.000)"]
    assert not any(cells[4:])


def test_a_page_shows_the_plot_of_a_result_that_names_one(tmp_path):
    run_command(inference.main, [*QUICK, "--peers", "base", "capaboost-d2", "--results", str(tmp_path / "results")])
    masks.main([*QUICK, "--results", str(tmp_path / "results")])
    (picture,) = (path.with_suffix(".svg").name for path in (tmp_path / "results").glob("inference*"))
    results = make_tables.read_results(tmp_path / "results")
    regions = "".join(f"<!-- {name}:begin --><!-- {name}:end -->" for name in ("summary", *make_tables.BENCHMARKS))
    text = make_tables.fill(regions, results, tmp_path / "docs" / "page.md")
    assert text.count(f"](../results/{picture})") == text.count(".svg") == 1


def test_tables_refuse_a_page_without_regions_and_a_foreign_file(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(UserError, match="no place for summary"):
        make_tables.main(["--results", str(tmp_path), "--page", str(page)])
    (tmp_path / "a.json").write_text(json.dumps({"benchmark": "step"}))
    with pytest.raises(UserError, match="lacks settings"):
        make_tables.main(["--results", str(tmp_path), "--page", str(page)])
    assert page.read_text() == "nothing\n"
