"""What an adapter holds: trainable parameters, optimizer state, file. The head is counted in none of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.peers import Peer, adapter_parameters
from capaboost_core.plan import in_prefix

SIZES = ("trainable_parameters", "optimizer_bytes", "file_bytes")


def sizes_of(peer: Peer, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Counts of one peer, after its first step; none of a peer without an adapter."""
    if peer.file_tensors is None:
        return {}
    parameters = adapter_parameters(peer).values()
    states = [value for p in parameters for value in optimizer.state[p].values() if torch.is_tensor(value)]
    counts = (sum(p.numel() for p in parameters), sum(tensor.nbytes for tensor in states), _file_bytes(peer))
    return dict(zip(SIZES, counts, strict=True))


def _file_bytes(peer: Peer) -> int:
    """Size of the safetensors file of all that the peer saves but the head."""
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in peer.file_tensors().items()
        if not any(in_prefix(name, prefix) for prefix in peer.head)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_file(tensors, path)
        return path.stat().st_size
