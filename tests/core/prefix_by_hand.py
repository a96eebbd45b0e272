"""The prefix as its formula has it, written out in double precision."""

import numpy as np
import torch

from capaboost_core.sharing.masks import mask_bits


def copies_by_hand(config, path, weight, tied, width):
    """The concatenated copies (d*r, width) of a tied weight, written out from its packed entries."""
    bits = mask_bits(config, path, weight, (config.r, width))
    dense = np.zeros(bits.shape)
    dense[bits != 0] = tied.packed.detach().double().flatten().numpy()
    return torch.from_numpy(np.concatenate([dense * (bits >> i & 1) for i in range(config.num_tied)]))
