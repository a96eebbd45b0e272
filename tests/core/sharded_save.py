"""One process of two that train a tiny model sharded by FSDP2, save it, and load it again.

python -m tests.core.sharded_save FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from capaboost_core import UserError, load_adapter, save_adapter, trainable_parameters
from tests.core.adapter_case import contents, saved
from tests.core.toy_model import X, adapted, fresh_base, randomise


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in (model.first, model.second):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def refused(call, *args) -> str:
    try:
        call(*args)
    except UserError as error:
        return str(error)
    raise AssertionError("not refused")


def main(folder: Path) -> None:
    model = randomise(adapted())
    if distributed.get_rank() == 0:
        saved(folder / "one", model)
    distributed.barrier()
    expected = model(X).detach()
    save_adapter(sharded(model), folder / "two")
    assert contents(folder / "two") == contents(folder / "one")

    other = load_adapter(sharded(adapted()), folder / "one")
    torch.testing.assert_close(other(X).detach(), expected)
    other(X).square().mean().backward()  # and it still trains
    assert all(p.grad is not None for p in trainable_parameters(other).values())

    (folder / "file").touch()
    assert "file or a dangling link" in refused(save_adapter, model, folder / "file")  # on both processes
    assert "load it before wrapping" in refused(load_adapter, sharded(fresh_base()), folder / "one")
    print("done", flush=True)


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    main(Path(sys.argv[1]))
    distributed.destroy_process_group()
