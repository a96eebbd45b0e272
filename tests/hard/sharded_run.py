"""One process of those that train adapted models with the training loop: DDP, or FSDP2 with ACCELERATE_USE_FSDP.

python -m tests.hard.sharded_run FOLDER PRESET-KIND...

Each case trains, is cut off in its second epoch, and goes on. FOLDER/CASE then holds the run, `adapter`, and a file
`sharded` if all parameters were; where the method is refused, `refused.txt` holds the line.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from capaboost.training.loop import fit
from capaboost.training.optimize import make_accelerator
from capaboost.training.settings import TrainSection
from capaboost_core import UserError, save_adapter
from tests.compatibility.models import logits
from tests.methods.cases import Examples, adapted


class Rows(Examples):
    """Two slices of one row each in a step, so that a process gets one."""

    def batches(self, epoch):
        return [list(range(self.examples))]

    def evaluate(self, model):
        """Processes evaluate unequal numbers of batches."""
        metrics = super().evaluate(model)
        for _ in range(1 + torch.distributed.get_rank()):
            assert logits(model).isfinite().all()
        return metrics


def train(preset: str, kind: str, folder: Path, cut: bool, resume: bool) -> nn.Module:
    torch.manual_seed(0)
    model = adapted(preset, kind)
    chosen = TrainSection(
        epochs=3,
        batch_size=Rows.examples,
        lr=0.01,
        warmup_ratio=0.0,
        max_grad_norm=0.5,
        weight_decay=0.1,
        mixed_precision="no",
    )
    fit(make_accelerator(chosen, folder), model, Rows(cut), chosen, folder, {}, resume=resume)
    return model


def case(preset: str, kind: str, folder: Path) -> None:
    try:
        train(preset, kind, folder, cut=True, resume=False)
    except InterruptedError:
        pass
    except UserError as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "refused.txt").write_text(str(error))
        return
    model = train(preset, kind, folder, cut=False, resume=True)
    is_first, is_sharded = (
        torch.distributed.get_rank() == 0,
        all(hasattr(p, "full_tensor") for p in model.parameters()),
    )
    if is_first or is_sharded:
        save_adapter(model, folder / "adapter")
    if is_first and is_sharded:
        (folder / "sharded").touch()


if __name__ == "__main__":
    for name in sys.argv[2:]:
        case(*name.rsplit("-", 1), Path(sys.argv[1]) / name)
    torch.distributed.destroy_process_group()
