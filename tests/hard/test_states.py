"""Any sequence of merging, disabling, training, saving, loading and copying computes what the formula says.

The model is checked against the formula itself, on frozen weights that were kept beside it from the start.
"""

from __future__ import annotations

import copy
import threading

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from capaboost_core import (
    CapaBoostConfig,
    UserError,
    disable,
    inject,
    load_adapter,
    merge,
    merged,
    save_adapter,
    trainable_parameters,
    unmerge,
)
from tests.core.toy_model import PLAN, X, fresh_base, randomise
from tests.hard.counts import count
from tests.hard.oracle import bits, scratch

CLOSE = dict(rtol=1e-4, atol=1e-4)


def increment(layer) -> torch.Tensor:
    """alpha/r * sum_i (B * mb_i)(A * ma_i) of each slice of a layer, written out copy by copy (Eq. 4)."""
    total = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    a, b = (_dense(tied) for tied in (layer.lora_A, layer.lora_B))
    begin = 0
    for i, (start, stop) in enumerate(layer.slices):
        for copy_i in range(layer.lora_A.num_tied):
            up, down = b[copy_i][:, begin : begin + stop - start].T, a[copy_i][i]
            total[start:stop] += layer.scaling * up @ down
        begin += stop - start
    return total


def _dense(tied) -> list[torch.Tensor]:
    """A weight as each copy sees it."""
    packed, kept = tied.packed.detach().double().flatten(), tied.bits.numpy()
    dense = np.zeros(kept.shape)
    dense[kept > 0] = packed.numpy()
    return [torch.from_numpy(dense * (kept >> i & 1)) for i in range(tied.num_tied)]


class States(RuleBasedStateMachine):
    """One adapted model through any sequence of states."""

    @initialize(tied=st.sampled_from([1, 2, 3]), mask=st.sampled_from(["random", "same"]))
    def start(self, tied, mask):
        self.frozen = {name: value.clone() for name, value in fresh_base().state_dict().items() if "head" not in name}
        masks = {"mask": mask, "density": 0.5} if tied > 1 else {"density": 1.0}
        self.config = CapaBoostConfig(r=4, num_tied=tied, **masks)
        self.model = randomise(inject(fresh_base(), self.config, PLAN)).eval()
        self.is_merged = False

    def expected(self, adapted: bool = True) -> torch.Tensor:
        x = X.double()
        for name in ("first", "second"):
            layer = getattr(self.model, name)
            weight = self.frozen[f"{name}.weight"].double() + (increment(layer) if adapted else 0)
            x = F.linear(x, weight, self.frozen[f"{name}.bias"].double())
            x = x.relu() if name == "first" else x
        head = self.model.head
        return F.linear(x, head.weight.double(), head.bias.double()).detach()

    def holds(self, model, adapted: bool = True) -> None:
        with torch.no_grad():
            torch.testing.assert_close(model(X).double(), self.expected(adapted), **CLOSE)

    @rule()
    def merge(self):
        merge(self.model)
        self.is_merged = True

    @rule()
    def unmerge(self):
        unmerge(self.model)
        self.is_merged = False

    @rule()
    def disable(self):
        with disable(self.model):
            self.holds(self.model, adapted=False)

    @rule()
    def merged(self):
        with merged(self.model):
            self.holds(self.model)

    @rule()
    def merged_in_threads(self):
        def evaluate():
            with merged(self.model), torch.no_grad():
                self.model(X)

        threads = [threading.Thread(target=evaluate) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @rule(steps=st.integers(1, 2))
    def train(self, steps):
        """A step on a merged model is refused; any other moves every trained parameter."""
        self.model.train()
        parameters = trainable_parameters(self.model)
        optimizer = torch.optim.SGD(parameters.values(), lr=1e-3)
        before = {name: bits(parameter) for name, parameter in parameters.items()}
        try:
            for _ in range(steps):
                optimizer.zero_grad()
                self.model(X).square().mean().backward()
                torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
                optimizer.step()
            assert not self.is_merged, "a merged model was trained"
            assert all(parameter.grad is not None for parameter in parameters.values())
            assert any(before[name] != bits(parameter) for name, parameter in parameters.items())
        except UserError:
            assert self.is_merged
            assert all(before[name] == bits(parameter) for name, parameter in parameters.items())
        finally:
            self.model.eval()

    @rule(fresh=st.booleans())
    def save_and_load(self, fresh):
        with scratch() as folder:
            save_adapter(self.model, folder)
            other = fresh_base() if fresh else inject(fresh_base(), self.config, PLAN)
            self.model = load_adapter(other, folder).eval()
        self.is_merged = False

    @rule()
    def deepcopy(self):
        self.model = copy.deepcopy(self.model)

    @rule(into_merged=st.booleans())
    def state_dict_into_another(self, into_merged):
        """Strictly into another adapted model, merged or not: the values come over, its state stays."""
        other = randomise(inject(fresh_base(), self.config, PLAN)).eval()
        if into_merged:
            merge(other)
        try:
            other.load_state_dict(copy.deepcopy(self.model.state_dict()))
        except UserError:
            return
        self.model, self.is_merged = other, into_merged

    @precondition(lambda self: not self.is_merged)
    @rule()
    def other_values(self):
        randomise(self.model)

    @invariant()
    def computes_the_formula(self):
        if hasattr(self, "model"):
            self.holds(self.model)

    @invariant()
    def keeps_the_frozen_weights(self):
        if hasattr(self, "model") and not self.is_merged:
            held = self.model.state_dict()
            assert all(bits(held[name]) == bits(value) for name, value in self.frozen.items())

    def teardown(self):
        if hasattr(self, "model"):
            unmerge(self.model)
            self.is_merged = False
            self.keeps_the_frozen_weights()
            count("accepted")


def test_any_sequence_of_states():
    most = settings.default.max_examples // 3
    run_state_machine_as_test(States, settings=settings(max_examples=most, stateful_step_count=15))
