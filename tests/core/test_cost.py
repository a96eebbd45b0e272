"""Costs of a small model against hand arithmetic, real files and real optimizers."""

import json

import pytest
import torch
from torch import nn

from capaboost.report.cost import ModelFactory, adapter_file_bytes, cost_of, optimizer_bytes, settings_of
from capaboost.report.cost_report import bytes_text, choose_methods, make_report, occurrences, show, write_files
from capaboost.report.peak_memory import peak_bytes, step_peak_bytes
from capaboost_core import CapaBoostConfig, Plan, Target, UserError, inject, save_adapter, trainable_parameters
from capaboost_core.account import account_of
from capaboost_core.methods import PRESETS

ROWS, WIDTH, CLASSES = 3, 32, 5
PLAN = Plan((Target("0"), Target("2")), head=("4",))
METHODS = [
    name for name, preset in PRESETS.items() if not preset.layers_from_integration
]  # here are linear layers alone


class Tiny(nn.Sequential):
    """Two blocks and a head."""

    def __init__(self):
        layers = (nn.Linear(WIDTH, WIDTH), nn.ReLU())
        super().__init__(*layers, nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def tiny(device="meta"):
    def build():
        with torch.device(device):
            return Tiny()

    inputs = {"input": torch.zeros(ROWS, WIDTH, device=device)}
    return ModelFactory(build, lambda model, config: inject(model, config, PLAN), inputs)


def adapted(method, dtype=torch.float32):
    return inject(Tiny().to(dtype), PRESETS[method], PLAN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_bytes_are_those_of_a_real_optimizer_and_a_real_file(method, dtype, tmp_path):
    model = adapted(method, dtype)
    parameters = trainable_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values())
    model(torch.ones(ROWS, WIDTH, dtype=dtype)).sum().backward()
    optimizer.step()
    state = [tensor for tensors in optimizer.state.values() for tensor in tensors.values()]
    assert optimizer_bytes(parameters) == sum(tensor.numel() * tensor.element_size() for tensor in state)
    save_adapter(model, tmp_path)
    assert adapter_file_bytes(account_of(model).everything) == (tmp_path / "adapter.safetensors").stat().st_size


def test_file_of_several_precisions(tmp_path):
    model = inject(Tiny(), "lora", PLAN)
    model[4].double()
    save_adapter(model, tmp_path)
    assert adapter_file_bytes(trainable_parameters(model)) == (tmp_path / "adapter.safetensors").stat().st_size


def test_cost_is_hand_arithmetic():
    r, subject = 4, tiny("cpu")
    base = ROWS * WIDTH * (2 * WIDTH + CLASSES)
    lora = cost_of(subject, CapaBoostConfig(r=r, num_tied=1, density=1.0))
    ours = cost_of(subject, CapaBoostConfig(r=r, num_tied=4, density=0.25))
    entries = 2 * 2 * WIDTH * r
    assert (lora.trainable, lora.total) == (entries, 2 * WIDTH * (WIDTH + 1))
    assert lora.percent == pytest.approx(100 * entries / (2 * WIDTH * (WIDTH + 1)))
    assert lora.forward.effective == lora.forward.executed == base + ROWS * entries
    assert ours.forward.effective == lora.forward.effective  # d * density = 1
    assert ours.forward.executed == base + 4 * ROWS * entries
    # Backward: factors have two gradients, the first ones none of the input; so has the second frozen layer.
    head = 2 * ROWS * WIDTH * CLASSES
    for counted, copies in ((lora.step.executed, 1), (ours.step.effective, 1), (ours.step.executed, 4)):
        expected = (7 * ROWS * entries // 4) * copies + ROWS * WIDTH * WIDTH + head
        assert counted == pytest.approx(expected + base + copies * ROWS * entries)
    assert ours.trainable == pytest.approx((1 - 0.75**4) * entries, rel=0.1)


def test_settings_reach_every_method_but_plain_stays_plain():
    changes = {"r": 3, "num_tied": 3, "density": 0.25, "targets": "all-linear"}
    plain, tied = settings_of("lora", changes), settings_of("capaboost-lora", changes)
    assert (plain.r, plain.num_tied, plain.density, plain.targets) == (3, 1, 1.0, "all-linear")
    assert (tied.r, tied.num_tied, tied.density, tied.targets) == (3, 3, 0.25, "all-linear")
    assert settings_of("padapter", {"mask": "nm", "n": 2, "m": 4}) == PRESETS["padapter"]
    assert settings_of("capaboost-padapter", {"mask": "nm", "n": 2, "m": 4}).n == 2


def test_report_is_relative_to_lora_and_leaves_out_with_a_reason():
    report = make_report(tiny(), list(PRESETS), {"r": 4, "alpha": 8}, strict=False)
    rows = {row["method"]: row for row in report.rows}
    fields = {name: type(preset).model_fields for name, preset in PRESETS.items()}
    assert set(rows) == {name for name in METHODS if not fields[name] or {"r", "alpha"} <= fields[name].keys()}
    assert set(report.left_out) == PRESETS.keys() - rows.keys() >= {"prefix", "capaboost-prefix", "adaptformer"}
    assert rows["lora"]["percent_of_lora"] == 100
    assert rows["lora"]["step_executed_times_lora"] == rows["lora"]["added_effective_times_lora"] == 1
    assert rows["capaboost-lora"]["added_effective_times_lora"] == 1
    assert rows["capaboost-lora"]["added_executed_times_lora"] == 2
    assert rows["linear"]["added_executed_multiply_adds"] == rows["full"]["added_executed_multiply_adds"] == 0
    assert (
        report.base["forward_multiply_adds"]
        == report.base["torch_multiply_adds"]
        == rows["full"]["forward_executed_multiply_adds"]
    )
    assert rows["full"]["percent_of_model"] == 100
    assert all("\n" not in reason for reason in report.left_out.values())
    with pytest.raises(UserError, match="alpha"):
        make_report(tiny(), ["prefix"], {"alpha": 8}, strict=True)


def test_report_is_written_whole_and_shown(tmp_path, capsys):
    report = make_report(tiny(), ["lora", "capaboost-lora"], {"r": 4}, strict=True)
    record = {"rows": report.rows, "base": report.base}
    paths = write_files(tmp_path / "a" / "tiny.v1", record, report.facts(), report.sheets())
    assert [path.name for path in paths] == ["tiny.v1.json", "tiny.v1.csv", "tiny.v1.md"]
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "a").iterdir())
    assert json.loads(paths[0].read_text()) == record
    lines = paths[1].read_text().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("lora,512,")
    assert "| lora | 512 |" in paths[2].read_text()
    show(report.facts(), report.sheets())
    shown = capsys.readouterr().out
    assert "512" in shown
    assert "2.00x" in shown


def test_occurrences_are_those_of_all_methods():
    assert occurrences({"a": {"aten::add": 3, "x::y": 1}, "b": {"x::y": 1}}) == "add 0 to 3, x::y 1"
    assert occurrences({"a": {}, "b": {}}) == "none"


def test_methods_by_name():
    assert choose_methods("all") == list(PRESETS)
    assert choose_methods("lora, capaboost-lora,lora") == ["lora", "capaboost-lora"]
    with pytest.raises(UserError, match="capaboost-lora"):
        choose_methods("lora,capaboost-lor")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rank": 3}, "unknown adapter setting"), ({"r": 0}, "r is 0"), ({"method": "lora"}, "--methods")],
)
def test_wrong_settings_are_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        settings_of("lora", changes)
    assert "\n" not in str(caught.value)


def test_bytes_in_words():
    expected = {0: "0 B", 1023: "1,023 B", 1536: "1.50 KiB", 3 << 20: "3.00 MiB", 5 << 30: "5,120.00 MiB"}
    assert {size: bytes_text(size) for size in expected} == expected
    assert bytes_text(None) == "not measured"


def test_peak_is_the_most_that_was_held_at_once():
    held = torch.ones(1000)

    def work():
        first = torch.empty(1000)  # 4,000 bytes
        second = torch.empty(3000)  # with 12,000 more
        del first, second
        return held.add(1) + torch.empty(1000)

    assert peak_bytes(work, torch.device("cpu")) == 16_000
    assert peak_bytes(lambda: held.add_(1), torch.device("cpu")) < 100  # a scalar or so


class Chain(nn.Module):
    """Three square layers without biases: 3 n^2 weights."""

    def __init__(self, n):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(n, n, bias=False) for _ in range(3)))

    def forward(self, x):
        return self.layers(x)


def test_peak_memory_is_hand_arithmetic():
    n, x = 500, torch.zeros(1, 500)
    square, small = 4 * n * n, 40 * 4 * n
    full = step_peak_bytes(Chain(n), {"x": x})
    # 3 weights, 3 gradients, 2 moments each: 12 squares; AdamW's own temporaries are up to one a weight more.
    assert 12 * square <= full <= 15 * square + small
    model = Chain(n).requires_grad_(False)
    model.layers[2].requires_grad_(True)
    one = step_peak_bytes(model, {"x": x})
    assert 6 * square <= one <= 8 * square + small
    # Each row more holds at least its own input and output.
    more = step_peak_bytes(model, {"x": torch.zeros(20 * n, n)}) - one
    assert more >= 2 * 20 * square
