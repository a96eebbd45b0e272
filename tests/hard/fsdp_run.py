"""One process of those that train a tiny adapted model whose parameters FSDP2 shards, then save and load it.

python -m tests.hard.fsdp_run FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from capaboost_core import load_adapter, save_adapter, trainable_parameters
from tests.core.toy_model import X, adapted

STEPS, LR = 5, 0.05
ROWS = 4  # of X, for each process as many


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in (model.first, model.second):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model: nn.Module, rows: torch.Tensor) -> nn.Module:
    """A few steps on the rows."""
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=LR, weight_decay=0.1, eps=1e-4)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(rows) - 1).square().mean().backward()
        optimizer.step()
    return model


def main(folder: Path) -> None:
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    model = train(sharded(adapted()), X[:ROWS].chunk(processes)[rank])
    save_adapter(model, folder / "saved")
    again = load_adapter(sharded(adapted()), folder / "saved")
    save_adapter(train(again, X[:ROWS].chunk(processes)[rank]), folder / "again")


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    main(Path(sys.argv[1]))
    distributed.destroy_process_group()
