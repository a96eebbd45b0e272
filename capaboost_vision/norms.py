"""timm's layer norm with a trained scale and shift."""

from __future__ import annotations

from timm.layers import LayerNorm

from capaboost_core.methods.scale_shift import ScaleShiftMethod, ScaleShiftNorm


class ScaleShiftTimmNorm(ScaleShiftNorm, LayerNorm):
    """`timm.layers.LayerNorm`, whose forward may take a faster kernel; merged, it takes torch's."""


ScaleShiftMethod.layers[LayerNorm] = ScaleShiftTimmNorm
