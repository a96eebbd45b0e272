"""The masked views of a tied weight, put together entry by entry."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from capaboost_core.sharing.tied import TiedWeight


def views(tied: TiedWeight) -> list[Tensor]:
    """The d views (..., r, width) in float64, from the list of entries and the masks."""
    bits, entries = tied.bits.numpy(), iter(tied.packed.detach().flatten().tolist())
    found = np.zeros((tied.num_tied, *bits.shape))
    for place, mask in np.ndenumerate(bits):
        if mask:
            entry = next(entries)
            for copy in range(tied.num_tied):
                found[(copy, *place)] = entry * (int(mask) >> copy & 1)
    return list(torch.from_numpy(found))
