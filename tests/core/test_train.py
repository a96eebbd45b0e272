"""The loop: resuming changes nothing, sharing a batch changes nothing, nothing is overwritten."""

import pytest
import torch

from capaboost.training.optimize import Stepper, make_accelerator, split_batch
from capaboost.training.settings import Schedule
from capaboost_core import CapaBoostConfig, Plan, Target, UserError, inject, trainable_parameters
from capaboost_core.task import Hooks
from tests.commands import finish, ranks
from tests.core.toy_run import Toy, lines, model, run, same, settings, stopping_at


def test_schedule_warms_up_then_falls():
    cosine = Schedule(lr=1.0, total_steps=20, warmup_steps=10, warmup_lr=0.5, min_lr=0.2)
    assert [cosine(0), cosine(5), cosine(10)] == pytest.approx([0.5, 0.75, 1.0])
    assert [cosine(15), cosine(20)] == pytest.approx([0.6, 0.2])
    linear = Schedule(lr=1.0, total_steps=10, shape="linear")
    assert [linear(0), linear(5), linear(10)] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize(("size", "processes", "slices"), [(64, 1, 1), (5, 2, 1), (3, 2, 2), (1, 3, 1), (7, 2, 3)])
def test_shares_cover_each_example_once(size, processes, slices):
    batch = list(range(size))
    parts = [part for process in range(processes) for part in split_batch(batch, process, processes, slices)]
    assert len(parts) == processes * slices
    assert [example for part, weight in parts if weight for example in part] == batch
    assert sum(weight for _, weight in parts) == pytest.approx(1)
    assert all(len(part) for part, _ in parts)


def test_a_run_learns_and_leaves_a_line_for_each_epoch(tmp_path):
    network, result = run(tmp_path)
    told = lines(tmp_path)
    assert [line["epoch"] for line in told] == [1, 2, 3, 4]
    assert told[-1]["loss"] < told[0]["loss"]
    assert told[-1]["rows_per_second"] > 0
    assert (result.epoch, result.metrics["score"]) == (4, told[-1]["score"])
    assert torch.equal(network[0].weight, model()[0].weight)
    assert list(tmp_path.rglob("events.out.tfevents*"))


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, stop):
    whole, result = run(tmp_path / "whole", network=model(dropout=0.5))
    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", task=stopping_at(stop), network=model(dropout=0.5))
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 9, "cut of')  # killed between the line and the checkpoint
    resumed, again = run(tmp_path / "cut", network=model(dropout=0.5), resume=True)
    assert same(whole, resumed)
    assert again.metrics == result.metrics
    timeless = [
        [{k: v for k, v in x.items() if "second" not in k} for x in lines(tmp_path / f)] for f in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]


def adapted(method="lora"):
    sizes = {} if method == "linear" else {"r": 2}
    return inject(model(dropout=0.5), CapaBoostConfig(method, **sizes), Plan((Target("0"),), ("3",)))


@pytest.mark.parametrize("decay_biases", [False, True])
@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize(("method", "head_lr"), [("lora", 0.2), ("lora", 0.01), ("linear", 0.2), ("lora", None)])
def test_the_head_has_its_rate_at_each_step(tmp_path, method, head_lr, shape, decay_biases):
    """The peak is head_lr, and every other rate is in proportion; biases and matrices alike."""
    network, chosen = adapted(method), settings(head_lr=head_lr, schedule=shape, decay_biases=decay_biases)
    accelerator, parameters = make_accelerator(chosen, tmp_path), trainable_parameters(network)
    toy, hooks = Toy(accelerator.device, chosen.batch_size), Hooks(network)
    stepper = Stepper(accelerator, network, parameters, chosen, 5, hooks)
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    expected = chosen.schedule_of(stepper.steps)
    peak = 0.0
    for step in range(stepper.steps):
        stepper.step(step, toy.batches(0)[0], toy.loss)
        groups = stepper.optimizer.param_groups
        rates = {name_of[id(p)]: group["lr"] for group in groups for p in group["params"]}
        ratio = 1.0 if head_lr is None else head_lr / chosen.lr
        assert rates == pytest.approx({n: expected(step) * (ratio if n.startswith("3.") else 1) for n in parameters})
        assert stepper.lr == pytest.approx(expected(step))  # of the run, as the log has it
        peak = max(peak, rates["3.weight"])
    assert peak == pytest.approx(head_lr or chosen.lr)


def test_the_first_step_moves_the_head_by_its_own_rate(tmp_path):
    """Adam's first step is the rate times the sign of the gradient, where nothing decays."""
    moved = {}
    for head_lr in (None, 0.2):
        network, chosen = adapted(), settings(head_lr=head_lr, warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=None)
        accelerator, parameters = make_accelerator(chosen, tmp_path), trainable_parameters(network)
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        toy = Toy(accelerator.device, chosen.batch_size)
        Stepper(accelerator, network, parameters, chosen, 5, Hooks(network)).step(0, toy.batches(0)[0], toy.loss)
        moved[head_lr] = {name: float((p.detach() - before[name]).abs().max()) for name, p in parameters.items()}
    for name, by in moved[None].items():
        assert moved[0.2][name] == pytest.approx(by * (4 if name.startswith("3.") else 1), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_whose_head_has_its_own_rate_resumes_to_the_bit(tmp_path, stop):
    whole, _ = run(tmp_path / "whole", network=adapted(), head_lr=0.2)
    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", task=stopping_at(stop), network=adapted(), head_lr=0.2)
    resumed, _ = run(tmp_path / "cut", network=adapted(), resume=True, head_lr=0.2)
    plain, _ = run(tmp_path / "plain", network=adapted())
    assert same(whole, resumed)
    assert not same(whole, plain)


def test_a_rate_of_the_head_where_none_trains_is_one_line(tmp_path):
    network = inject(model(), CapaBoostConfig("lora", r=2), Plan((Target("0"),), ()))
    with pytest.raises(UserError, match=r"train\.head_lr is 0\.2, and this run trains no head; type null"):
        run(tmp_path, network=network, head_lr=0.2)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_finished_run_resumes_to_itself(tmp_path):
    network, result = run(tmp_path)
    again, repeated = run(tmp_path, resume=True)
    assert same(network, again)
    assert repeated == result


def test_resume_without_a_checkpoint_starts_and_says_so(tmp_path, capsys):
    with pytest.raises(InterruptedError):
        run(tmp_path, task=stopping_at(1))
    run(tmp_path, resume=True)
    assert "no checkpoint yet, starting from the beginning" in capsys.readouterr().out
    assert len(lines(tmp_path)) == 4


class Falling(Toy):
    def evaluate(self, model):
        self.evaluations += 1
        self.seen = [*getattr(self, "seen", []), model[3].weight.clone()]
        type(self).last = self
        value = [1.0, 3.0, 3.0, 2.0][self.evaluations - 1]
        return {"score": value, "perplexity": 4.0 - value}


@pytest.mark.parametrize(("metric", "value"), [("score", 3.0), ("perplexity", 1.0)])
def test_selection_gives_the_first_best_epochs_weights(tmp_path, metric, value):
    network, result = run(tmp_path, task=Falling, select_by=metric)
    assert (result.epoch, result.metrics[metric]) == (2, value)
    assert torch.equal(network[3].weight, Falling.last.seen[1])
    again, result = run(tmp_path, task=Falling, select_by=metric, resume=True)
    assert result.epoch == 2
    assert same(network, again)


def test_accumulation_changes_nothing_but_rounding(tmp_path):
    one, _ = run(tmp_path / "one")
    several, _ = run(tmp_path / "several", gradient_accumulation_steps=4)
    torch.testing.assert_close(several[3].weight, one[3].weight, atol=1e-5, rtol=0)


def test_two_processes_give_the_losses_of_one(tmp_path):
    one, _ = run(tmp_path / "one")
    finish(ranks(2, "-m", "tests.core.toy_run", str(tmp_path / "two")))
    losses = [[line["loss"] for line in lines(tmp_path / folder)] for folder in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    trained = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["parameters"]
    torch.testing.assert_close(trained["3.weight"], one[3].weight.detach(), atol=1e-5, rtol=0)


def test_nothing_is_overwritten_or_mixed(tmp_path):
    run(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match="--resume or another --output-dir"):
        run(tmp_path)
    with pytest.raises(UserError, match=r"train\.lr: 0\.05 there, 0\.1 here"):
        run(tmp_path, lr=0.1, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


class Diverging(Toy):
    def loss(self, model, batch):
        return super().loss(model, batch) * float("inf")


class BreakingAtTheEnd(Toy):
    """The loss is finite in every step, the parameters after the last one are not."""

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return loss + torch.sqrt(model[3].weight - model[3].weight).sum() if len(batch) == 3 else loss


@pytest.mark.hard_case(29, "messages")
@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Diverging, r"the loss is nan in epoch 1; lower train\.lr"),
        (BreakingAtTheEnd, r"a trained parameter is not finite in epoch 1; lower train\.lr"),
    ],
)
def test_what_is_not_finite_is_not_saved(tmp_path, task, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", task=task, max_grad_norm=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.hard_case(8)
@pytest.mark.parametrize("broken", ['{"epoch": 2, "lo', "[]\n", "\0\0\n"])
def test_a_broken_line_of_metrics_is_dropped_and_its_epoch_told_again(tmp_path, broken):
    run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", task=stopping_at(3))
    path = tmp_path / "cut" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0] + broken)
    run(tmp_path / "cut", resume=True)
    told = [
        [(line["epoch"], line["loss"], line["score"]) for line in lines(tmp_path / name)] for name in ("cut", "whole")
    ]
    assert told[0] == told[1]


class Undefined(Toy):
    def evaluate(self, model):
        return {"score": float("nan"), "other": float("inf")}


@pytest.mark.hard_case(29)
def test_numbers_that_json_does_not_have_become_null(tmp_path):
    _, result = run(tmp_path, task=Undefined, select_by="score")
    assert result.epoch == 1
    assert [(line["score"], line["other"]) for line in lines(tmp_path)] == [(None, None)] * 4
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
