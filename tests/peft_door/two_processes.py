"""An accelerate loop through peft's door in each of several processes: train, save the state, go on, save the adapter.

python two_processes.py FOLDER, with the variables that torch.distributed reads; alone it is one process.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model

from capaboost_peft import CapaBoostConfig
from tests.peft_door.models import TOKENS, bert, trained

STEPS = 4


def start() -> tuple[PeftModel, torch.optim.Optimizer]:
    """An adapted model without dropout, and its optimizer."""
    base = trained(bert(), seed=9, part="weight")
    config = CapaBoostConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], seed=3)
    model = trained(get_peft_model(base, config))
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*start())
    rank, count = accelerator.process_index, accelerator.num_processes
    for step in range(STEPS):
        if step == STEPS // 2:  # as after a kill
            accelerator.save_state(str(folder / "state"))
            accelerator.wait_for_everyone()  # the first process alone writes the model
            trained(accelerator.unwrap_model(model), seed=step)
            accelerator.load_state(str(folder / "state"))
        loss = model(input_ids=TOKENS[rank::count], labels=torch.arange(8)[rank::count] % 3).loss
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    accelerator.unwrap_model(model).save_pretrained(folder / "adapter", is_main_process=accelerator.is_main_process)
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
