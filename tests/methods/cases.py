"""The cases of the tests of every method: presets on a tiny timm model and a tiny BERT."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import capaboost_text
import capaboost_vision
from capaboost_core.inject import adapted_layers, own_parameters
from capaboost_core.methods import PRESETS, Method, resolve_config
from tests.compatibility.models import base, drawn, logits

R, WIDTH, DEPTH = 4, 16, 2
BOTTLENECK = (2 * R * WIDTH, R + WIDTH)
# Outputs of the layers of a block that have a bias: q, k, v, o, f1, f2 and two norms.
VIT_OUTPUTS, BERT_OUTPUTS = (4 + 4 + 1 + 2) * WIDTH, 4 * WIDTH + 24 + WIDTH + 2 * WIDTH
# Entries of one block by method: those of matrices, which masks may thin out, and all others; then those that the
# whole model has once. Where the kinds of model differ, by kind.
ADDED = {
    "lora": (2 * (R * WIDTH + WIDTH * R), 0),  # q and v
    "padapter": BOTTLENECK,
    "hadapter": (2 * BOTTLENECK[0], 2 * BOTTLENECK[1]),
    "adaptformer": BOTTLENECK,
    "vpt-deep": (R * WIDTH, 0),
    "vpt-shallow": (R * WIDTH // DEPTH, 0),
    "prefix": (2 * R * WIDTH, 0),  # keys and values
    "linear": (0, 0),
    "full": (0, 0),
    # Beside the blocks: the embedding of patches and the last norm, or the embeddings' norm, and biases of the pooler.
    # A core or matrices for 12 square matrices of a ViT's block; BERT's f1 and f2 count as two each.
    "fact-tt": {"vit": (0, 12 * R**2, 2 * R * WIDTH), "bert": (0, 8 * R**2, 2 * R * WIDTH)},
    "fact-tk": {"vit": (0, 12 * R, 2 * R * WIDTH + R**3), "bert": (0, 8 * R, 2 * R * WIDTH + R**3)},
    "repadapter": (0, 2 * (R * WIDTH + R + R * WIDTH // 2 + WIDTH)),  # two groups
    "ssf": {"vit": (0, 2 * VIT_OUTPUTS, 4 * WIDTH), "bert": (0, 2 * BERT_OUTPUTS, 2 * WIDTH)},
    "hadamard": (0, 4 * WIDTH),
    "bitfit": {"vit": (0, VIT_OUTPUTS, 2 * WIDTH), "bert": (0, BERT_OUTPUTS, 2 * WIDTH)},
}
# A constant that is added to all keys moves all scores of a query alike, which a softmax does not see.
UNSEEN = ("attention.self.key.bias", "attention.self.key.scale_shift.shift")

ONLY = {
    "vpt-deep": ("vit",),
    "vpt-shallow": ("vit",),
}  # the kind of model that a method is made for, where it is but one
KINDS = ("vit", "bert")
CASES = [(preset, kind) for preset in PRESETS for kind in KINDS if kind in ONLY.get(PRESETS[preset].method, KINDS)]
each_case = pytest.mark.parametrize(("preset", "kind"), CASES, ids=["-".join(case) for case in CASES])
each_preset = pytest.mark.parametrize("preset", list(PRESETS))


def added(method: str, kind: str) -> tuple[int, ...]:
    row = ADDED[method]
    return row[kind] if isinstance(row, dict) else row


def prompted(config: Method, tokens: int) -> int:
    """Multiply-adds of frozen layers with the tokens that a method adds: 12 square matrices a block, attention."""
    more = config.num_tied * config.r if config.method.startswith("vpt") else 0
    return DEPTH * (12 * more * WIDTH**2 + 2 * WIDTH * ((tokens + more) ** 2 - tokens**2))


def settings(preset: str, **changes) -> Method:
    config = resolve_config(preset)
    known = {name: value for name, value in ({"r": R} | changes).items() if name in type(config).model_fields}
    return config.replace(**known)


def put_in(model: nn.Module, config: Method) -> nn.Module:
    return (capaboost_text if hasattr(model, "config") else capaboost_vision).inject(model, config)


def adapted(preset: str, kind: str, **changes) -> nn.Module:
    return put_in(base(kind), settings(preset, **changes)).eval()


def trained(preset: str, kind: str, **changes) -> nn.Module:
    """Adapted, with drawn values in all that the method adds."""
    model = adapted(preset, kind, **changes)
    with torch.no_grad():
        for name, parameter in own_parameters(adapted_layers(model)).items():
            parameter.copy_(drawn(name, tuple(parameter.shape), 0.2))
    return model


def out(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return logits(model)
