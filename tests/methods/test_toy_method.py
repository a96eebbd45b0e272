"""A method is one class in one file: those below train, save, load, count and report without another edit.

As a script, one process of a distributed run: python -m tests.methods.test_toy_method FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import capaboost_vision  # noqa: F401  registers the argument `capaboost`
from capaboost.training.optimize import Stepper, make_accelerator
from capaboost_core import (
    Plan,
    Target,
    UserError,
    inject,
    load_adapter,
    parameter_counts,
    save_adapter,
    trainable_parameters,
)
from capaboost_core.adapter_files.base_model import DifferentBaseWarning
from capaboost_core.injection import adapted_layers
from capaboost_core.layers import Adapted, empty_like_weight
from capaboost_core.methods.method import METHODS, PRESETS, Method, register_method, resolve_config
from capaboost_core.sharing.masks import mask_bits
from capaboost_core.sharing.tied import TiedWeight, TyingSettings
from capaboost_core.task import Hooks
from tests.commands import finish, ranks
from tests.core.toy_run import EXAMPLES, Toy, model, run, same, settings, signalled, stopping_at

STEPS = 4 * -(-EXAMPLES // 5)  # of the toy run, in all


class ToyLinear(Adapted, nn.Linear):
    """x W^T + strength * sum_i x (V * m_i)^T."""

    def __init__(self, base: nn.Linear, config: ToyMethod, target: Target):
        self.adopt(base, target.path)
        start = nn.init.zeros_(empty_like_weight(base.weight, *base.weight.shape))
        self.toy = TiedWeight(config, mask_bits(config, target.path, "toy", start.shape), start)
        self.strength = config.strength

    def forward(self, x):
        out, copies = F.linear(x, self.weight, self.bias), self.toy.copies()
        added = F.linear(x, copies.flatten(0, 1)).unflatten(-1, copies.shape[:2]).sum(-2)
        return out + self.strength * added if self.enabled else out


class ToyMethod(TyingSettings, Method):
    """A masked full-rank increment on the output of each attention."""

    layers: ClassVar = {nn.Linear: ToyLinear}
    strength: float = Field(1.0, gt=0, description="Scale of the increment.")

    def plan(self, model, roles):
        return Plan(roles.targets(["o"]), roles.head)


class Biases(Method):
    """BitFit: parameters of the base that train."""

    def trains(self, name):
        return name.endswith("bias")


class SharedLinear(Adapted, nn.Linear):
    def __init__(self, base: nn.Linear, config: Method, target: Target, shared: nn.Parameter):
        self.adopt(base, target.path)
        self.shared = shared

    def forward(self, x):
        out = F.linear(x, self.weight, self.bias)
        return out + self.shared if self.enabled else out


class Shared(Method):
    """One vector that all layers add."""

    layers: ClassVar = {nn.Linear: SharedLinear}

    def plan(self, model, roles):
        return Plan(roles.targets(["o"]), roles.head)

    def make_layers(self, modules, plan):
        weight = modules[plan.targets[0].path].weight
        shared = nn.Parameter(nn.init.zeros_(empty_like_weight(weight, weight.shape[0])))
        return {t.path: SharedLinear(modules[t.path], self, t, shared) for t in plan.targets}


class Penalised(ToyMethod):
    """A decay, as a penalty on the loss."""

    def penalty(self, model):
        return 0.1 * sum(layer.toy.packed.square().sum() for layer in adapted_layers(model))


class Acting(ToyMethod):
    """Importance of entries as AdaLoRA has it: a running mean of |weight * gradient|, which a checkpoint must hold."""

    def after_step(self, model, step, steps):
        for layer in adapted_layers(model):
            weight = layer.toy.packed
            vars(layer).setdefault("importance", torch.zeros_like(weight)).mul_(0.9).add_((weight * weight.grad).abs())
            layer.done = (step, steps)
            if step % 5 == 0:
                weight[layer.importance < layer.importance.median()] = 0

    def state(self, model):
        layers = adapted_layers(model)
        return {
            layer.path: {"importance": getattr(layer, "importance", torch.zeros_like(layer.toy.packed))}
            for layer in layers
        }

    def load_state(self, model, state):
        for layer in adapted_layers(model):
            layer.importance = state[layer.path]["importance"].clone()


class Hurried(ToyMethod):
    """Its weight learns at a multiple of the rate, and each batch passes twice."""

    passes: ClassVar[list] = []

    def lr_factor(self, name):
        return 16.0 if "toy" in name else 1.0

    def objective(self, loss_of, model, batch):
        self.passes.extend([batch, batch])
        return (loss_of(model, batch) + loss_of(model, batch)) / 2


TOYS = dict(
    toy=ToyMethod,
    biases=Biases,
    shared=Shared,
    penalised=Penalised,
    hurried=Hurried,
    acting=Acting,
)


def register() -> None:
    for name, cls in TOYS.items():
        register_method(name)(cls)


@pytest.fixture(autouse=True)
def toys():
    register()
    yield
    for name in TOYS:
        del METHODS[name], PRESETS[name]


def adapted(method: str, dropout: float = 0.5) -> nn.Module:
    return inject(model(dropout), resolve_config(method), Plan((Target("0"),), ("3",)))


TINY = ["--model", "test_vit", "--set", "model.pretrained=false", "--dataset", "digits", "--source", "digits"]


def vit(**more) -> nn.Module:
    return timm.create_model("test_vit", num_classes=10, **more)


def test_the_ordinary_commands_take_a_new_method(tmp_path, monkeypatch):
    from capaboost.commands import flops as report_flops
    from capaboost.commands import train_vtab

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    flags = ["--method", "toy", "--set", "adapter.strength=2", "--epochs", "1", "--output-dir", str(tmp_path / "run")]
    assert train_vtab.main([*TINY, *flags]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    layers = adapted_layers(fresh := vit(capaboost=result["config"]["adapter"]))
    assert (result["method"], fresh.capaboost.config.strength) == ("capaboost-toy", 2.0)
    assert result["trainable_parameters"] == sum(int((layer.toy.bits > 0).sum()) for layer in layers)
    with pytest.warns(DifferentBaseWarning):  # the run drew other weights for its base
        load_adapter(fresh, tmp_path / "run" / "adapter")
    assert all(layer.toy.packed.any() for layer in layers)

    report = ["--model", "test_vit", "--methods", "toy", "--set", "adapter.num_tied=1", "--set", "adapter.density=1"]
    assert report_flops.main([*report, "--output", str(tmp_path / "report")]) == 0
    (row,) = json.loads((tmp_path / "report.json").read_text())["rows"]
    entries = sum(layer.weight.numel() for layer in layers)
    assert row["trainable_parameters"] == entries
    tokens = vit().pos_embed.shape[1]
    assert row["added_executed_multiply_adds"] == row["added_effective_multiply_adds"] == tokens * entries
    assert train_vtab.main([*TINY, "--method", "toy", "--set", "adapter.strengt=2"]) == 2


def test_biases_of_the_base_train_and_are_saved(tmp_path):
    network = vit(capaboost="biases")
    biases = {name: p for name, p in network.named_parameters() if name.endswith("bias") and "head" not in name}
    assert parameter_counts(network).trainable == sum(p.numel() for p in biases.values())
    torch.nn.init.normal_(biases["blocks.0.norm1.bias"])
    weights = {name: value for name, value in network.state_dict().items() if name not in biases}
    save_adapter(network, tmp_path)
    again = vit()
    again.load_state_dict(weights, strict=False)
    load_adapter(again, tmp_path)
    assert same(network, again)


def test_a_shared_parameter_is_counted_once_and_stays_shared(tmp_path):
    network = vit(capaboost="shared")
    first, *others = adapted_layers(network)
    assert parameter_counts(network).trainable == first.shared.numel() == first.out_features
    assert others
    assert all(layer.shared is first.shared for layer in others)
    torch.nn.init.normal_(first.shared)
    save_adapter(network, tmp_path)
    again = vit()
    again.load_state_dict({n: v for n, v in network.state_dict().items() if not n.endswith("shared")})
    load_adapter(again, tmp_path)
    assert len({id(layer.shared) for layer in adapted_layers(again)}) == 1
    x = torch.randn(2, 3, 160, 160)
    assert torch.equal(network.eval()(x), again.eval()(x))


def test_a_penalty_counts_once_a_step_however_the_batch_is_shared(tmp_path):
    free, _ = run(tmp_path / "free", network=adapted("toy", 0.0))
    whole, result = run(tmp_path / "whole", network=adapted("penalised", 0.0))
    sliced, _ = run(tmp_path / "sliced", network=adapted("penalised", 0.0), gradient_accumulation_steps=4)
    finish(ranks(2, "-m", "tests.methods.test_toy_method", str(tmp_path / "two")))
    weight = whole[0].toy.packed.detach()
    assert weight.norm() < 0.9 * free[0].toy.packed.norm()
    torch.testing.assert_close(sliced[0].toy.packed.detach(), weight, atol=1e-5, rtol=0)
    trained = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    torch.testing.assert_close(trained["parameters"]["0.toy.packed"], weight, atol=1e-5, rtol=0)
    assert trained["metrics"]["loss"] == pytest.approx(result.metrics["loss"], abs=1e-5)


def first_step(method: str, folder: Path) -> dict[str, torch.Tensor]:
    """What one step adds to each trained parameter."""
    network, chosen = adapted(method, 0.0), settings(weight_decay=0.0, warmup_ratio=0.0)
    accelerator, parameters = make_accelerator(chosen, folder), trainable_parameters(network)
    toy, before = Toy(accelerator.device, chosen.batch_size), {n: p.detach().clone() for n, p in parameters.items()}
    stepper = Stepper(accelerator, network, parameters, chosen, 5, Hooks(network))
    stepper.step(0, toy.batches(0)[0], toy.loss)
    assert stepper.lr == pytest.approx(chosen.lr)
    return {name: parameter.detach() - before[name] for name, parameter in parameters.items()}


def test_a_method_gives_parameters_their_own_rate_and_batches_their_passes(tmp_path):
    plain, hurried = first_step("toy", tmp_path), first_step("hurried", tmp_path)
    assert len(Hurried.passes) == 2
    for name, change in plain.items():
        assert change.any()
        torch.testing.assert_close(hurried[name], change * (16 if "toy" in name else 1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("stop", [stopping_at(2), signalled(9)], ids=["after an epoch", "within one"])
def test_state_of_a_method_is_saved_and_resumed_to_the_bit(tmp_path, stop):
    whole, _ = run(tmp_path / "whole", network=adapted("acting"))
    assert whole[0].done == (STEPS, STEPS)
    with pytest.raises((InterruptedError, KeyboardInterrupt)):
        run(tmp_path / "cut", task=stop, network=adapted("acting"))
    resumed, _ = run(tmp_path / "cut", network=adapted("acting"), resume=True)
    assert same(whole, resumed)
    assert torch.equal(whole[0].importance, resumed[0].importance)


def test_state_of_another_shape_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InterruptedError):
        run(tmp_path, task=stopping_at(2), network=adapted("acting"))
    monkeypatch.setattr(Acting, "state", lambda self, model: {"0": {"importance": torch.zeros(3)}})
    with pytest.raises(UserError, match="the method's state"):
        run(tmp_path, network=adapted("acting"), resume=True)


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def operators(network: nn.Module, folder: Path) -> list[str]:
    """All that two optimizer steps dispatch."""
    chosen = settings()
    accelerator = make_accelerator(chosen, folder)
    toy = Toy(accelerator.device, chosen.batch_size)
    stepper = Stepper(accelerator, network, trainable_parameters(network), chosen, 5, Hooks(network))
    with Operators() as ran:
        for step, batch in enumerate(toy.batches(0)[:2]):
            stepper.step(step, batch, toy.loss)
    return ran.names


def test_a_method_without_hooks_costs_no_operator(tmp_path):
    bare = operators(model(), tmp_path)
    assert bare == operators(inject(model(), "linear", Plan((), ("3",))), tmp_path)
    assert len(operators(adapted("penalised", 0.0), tmp_path)) > len(operators(adapted("toy", 0.0), tmp_path))


class Falling(Toy):
    """The second epoch is the best."""

    def evaluate(self, model):
        self.evaluations += 1
        type(self).importances = [*getattr(self, "importances", []), model[0].importance.clone()]
        return {"score": [1.0, 3.0, 3.0, 2.0][self.evaluations - 1]}


def test_a_selected_epoch_has_its_own_state(tmp_path):
    network, _ = run(tmp_path, task=Falling, network=adapted("acting"), select_by="score")
    assert torch.equal(network[0].importance, Falling.importances[1])


if __name__ == "__main__":
    register()
    run(Path(sys.argv[1]), network=adapted("penalised", 0.0), gradient_accumulation_steps=2)
