"""What counting takes from fvcore, imported without its warning that `torch.jit.script` is deprecated.

Raised where fvcore is first imported, it would stand above the one line of a user's mistake, and in each worker's log.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import conv_flop_jit, get_shape

__all__ = ["FlopCountAnalysis", "conv_flop_jit", "get_shape"]
