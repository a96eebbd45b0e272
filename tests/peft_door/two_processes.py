"""The cells of docs/peft.md's matrix of doors and loops, one after another in each of several processes.

python two_processes.py FOLDER, with the variables that torch.distributed reads: plain in one process, DDP and FSDP2 in
two. Each cell trains, is stopped and goes on. FOLDER/DOOR-LOOP-ENGINE then holds the adapter after all steps (`once`),
after all steps with a stop between (`resumed`), and that of the largest evaluation loss, which is the first (`best`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import capaboost_text
from capaboost_core import UserError, save_adapter
from capaboost_peft import CapaBoostConfig, save_lora, to_core
from tests.peft_door.models import TOKENS, bert, trained

STEPS, RATE = 4, 1e-2
LABELS = torch.arange(8) % 3
ENGINES = {1: ["plain"], 2: ["ddp", "fsdp2"]}  # by the number of processes
DOORS, LOOPS = ("core", "peft"), ("trainer", "accelerate")
WRAPPED = "BertLayer"


def base() -> nn.Module:
    """Without dropout, so that processes compute what one does."""
    return trained(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), seed=9, part="weight")


def start(door: str) -> nn.Module:
    if door == "core":
        return trained(capaboost_text.inject(base(), dict(method="lora", r=4, alpha=8.0, seed=3)))
    config = CapaBoostConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], seed=3)
    return trained(get_peft_model(base(), config))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)


@contextmanager
def fresh_state() -> Iterator[None]:
    """accelerate's state as at the start of a program, and FSDP2 on CPUs.

    Where that is asked for on CPUs, accelerate trains with DDP without a word. Its code for FSDP2 does not depend on
    the device: the state alone has to say so.
    """
    original = AcceleratorState.__init__

    def with_fsdp2(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = with_fsdp2
    yield
    AcceleratorState.__init__ = original
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    PartialState._shared_state.clear()


class Stopped(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.global_step == STEPS // 2


def with_trainer(folder: Path, door: str, engine: str) -> None:
    count = torch.distributed.get_world_size()

    def trainer(name: str, best: bool = False, **more) -> Trainer:
        arguments = TrainingArguments(
            str(folder / name),
            max_steps=STEPS,
            per_device_train_batch_size=len(TOKENS) // count,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=best,
            metric_for_best_model="eval_loss",
            greater_is_better=True,
            fsdp=engine == "fsdp2",
            fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": [WRAPPED]},
            report_to=[],
            disable_tqdm=True,
        )
        rows = [{"input_ids": row, "labels": label} for row, label in zip(TOKENS, LABELS, strict=True)]
        return Trainer(start(door), arguments, train_dataset=rows, eval_dataset=rows, **more)

    once = trainer("once", best=True)
    once.train()
    check_sharded(once.model, engine)
    once.save_model(str(folder / "best"))
    trainer("resumed", callbacks=[Stopped()]).train()
    trainer("resumed").train(resume_from_checkpoint=True)


def check_sharded(model: nn.Module, engine: str) -> None:
    assert all(hasattr(p, "full_tensor") == (engine == "fsdp2") for p in model.parameters())


def with_accelerate(folder: Path, door: str, engine: str) -> None:
    policy = dict(auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=[WRAPPED])
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT", **policy)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin if engine == "fsdp2" else None)
    for name in ("once", "resumed"):
        model = start(door)
        model, optimizer = accelerator.prepare(model, optimizer_of(model))
        check_sharded(model, engine)
        worst = 0.0
        for step in range(STEPS):
            if step == STEPS // 2 and name == "resumed":
                accelerator.save_state(str(folder / "state"))
                accelerator.wait_for_everyone()  # the first process alone writes the model
                spoil(model)
                accelerator.load_state(str(folder / "state"))
            train_step(accelerator, model, optimizer)
            with torch.no_grad():
                loss = model(input_ids=TOKENS, labels=LABELS).loss.item()
            if loss > worst:
                worst = loss
                save(accelerator, model, folder / "best", door)
        save(accelerator, model, folder / name, door)
        if (door, engine) == ("peft", "fsdp2"):
            check_refused(accelerator.unwrap_model(model), folder / "refused")
        accelerator.free_memory()


def check_refused(model: nn.Module, folder: Path) -> None:
    """What needs all weights is refused in one line, by all processes, instead of writing or reading a part."""
    before = {name: type(module) for name, module in model.named_modules()}
    for call in (model.save_pretrained, partial(to_core, model), partial(save_lora, model)):
        with pytest.raises(UserError, match=r"only a part of the weights; call save_pretrained\(folder, state_dict="):
            call(folder)
    with pytest.raises(UserError, match="only a part of the weights; load the saved adapter"):
        model.merge_and_unload()
    assert before == {name: type(module) for name, module in model.named_modules()}


def spoil(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)


def train_step(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    rank, count = accelerator.process_index, accelerator.num_processes
    loss = model(input_ids=TOKENS[rank::count], labels=LABELS[rank::count]).loss
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()


def save(accelerator: Accelerator, model: nn.Module, folder: Path, door: str) -> None:
    """As docs/peft.md says: the core's files from all processes that hold a part, peft's from the first."""
    bare, state = accelerator.unwrap_model(model), accelerator.get_state_dict(model)
    if door == "core" and (accelerator.is_main_process or accelerator.is_fsdp2):
        save_adapter(bare, folder)
    elif accelerator.is_main_process:
        bare.save_pretrained(folder, state_dict=state)
    accelerator.wait_for_everyone()


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    for engine in ENGINES[torch.distributed.get_world_size()]:
        for door in DOORS:
            for loop, run in (("trainer", with_trainer), ("accelerate", with_accelerate)):
                with fresh_state():
                    run(folder / f"{door}-{loop}-{engine}", door, engine)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
