"""timm's feed-forward parts with a bottleneck in parallel."""

from __future__ import annotations

from timm.layers import GluMlp, Mlp, SwiGLU

from capaboost_core.methods.adaptformer import AdaptFormer, ParallelFeedForward


class ParallelMlp(ParallelFeedForward, Mlp):
    pass


class ParallelGluMlp(ParallelFeedForward, GluMlp):
    pass


class ParallelSwiGLU(ParallelFeedForward, SwiGLU):
    pass


AdaptFormer.layers.update({Mlp: ParallelMlp, GluMlp: ParallelGluMlp, SwiGLU: ParallelSwiGLU})
