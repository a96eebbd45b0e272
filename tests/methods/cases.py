"""The cases of the tests of every method: presets on a tiny timm model and a tiny BERT."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import capaboost_text
import capaboost_vision
from capaboost_core.injection import adapted_layers, own_parameters
from capaboost_core.methods import PRESETS, Method, resolve_config
from tests.compatibility.models import base, drawn, logits

R, WIDTH, DEPTH = 4, 16, 2
BOTTLENECK = (2 * R * WIDTH, R + WIDTH)
N = 4  # Compacter's Kronecker products of a sum
UNIPELT = 2 * (10 + 48) * WIDTH  # prefix and bottleneck
COMPACTER = 2 * (WIDTH + R)  # entries of the factors of both projections
# (in, out) of the layers of a block that peft adapts, by kind: a fused qkv as a whole; q and v apart. Then those that
# (IA)^3 scales: their outputs, and the inputs of the last.
SHAPES = {"vit": [(WIDTH, 3 * WIDTH)], "bert": [(WIDTH, WIDTH)] * 2}
GAINS = {"vit": 3 * WIDTH + 4 * WIDTH, "bert": 2 * WIDTH + 24}
OUTER = 2 * R * WIDTH // DEPTH  # FacT's U and V, a share of a block
START, BASES = 6, WIDTH // R  # AdaLoRA's rank at first, 1.5 r; RandLoRA's number of bases
KRONECKER = {(16, 16): 4 * 4 + 4 * 4, (16, 48): 6 * 4 + 8 * 4}  # LoKr's two factors of the most nearly square shapes


def summed(entries):
    return lambda kind: sum(entries(*shape) for shape in SHAPES[kind])


PEFT = {
    "adalora": summed(lambda i, o: START * (i + o + 1)),
    "dora": summed(lambda i, o: R * (i + o) + o),
    "rslora": summed(lambda i, o: R * (i + o)),
    "pissa": summed(lambda i, o: R * (i + o)),
    "vera": summed(lambda i, o: o + R),
    "loha": summed(lambda i, o: 2 * R * (i + o)),
    "lokr": summed(lambda i, o: KRONECKER[i, o]),
    "ia3": GAINS.get,
    "randlora": summed(lambda i, o: R * BASES + BASES * min(i, o)),
    "shira": summed(lambda i, o: R * (i + o)),
}
# Outputs of the layers of a block that have a bias: q, k, v, o, f1, f2 and two norms.
VIT_OUTPUTS, BERT_OUTPUTS = (4 + 4 + 1 + 2) * WIDTH, 4 * WIDTH + 24 + WIDTH + 2 * WIDTH
# Entries of one block by method: those of matrices, which masks may thin out, and all others; then those that the
# whole model has once. Where the kinds of model differ, by kind.
ADDED = {
    "lora": (2 * (R * WIDTH + WIDTH * R), 0),  # q and v
    "lora-allocated": (2 * 2 * (R * WIDTH + WIDTH * R), 0),  # twice the places
    "hira": (2 * (R * WIDTH + WIDTH * R), 0),
    "padapter": BOTTLENECK,
    "hadapter": (2 * BOTTLENECK[0], 2 * BOTTLENECK[1]),
    "adaptformer": BOTTLENECK,
    "vpt-deep": (R * WIDTH, 0),
    "vpt-shallow": (R * WIDTH // DEPTH, 0),
    "prefix": (2 * R * WIDTH, 0),  # keys and values
    "compacter": (2 * COMPACTER, 2 * (R + WIDTH), N**3),
    "compacter++": (COMPACTER, R + WIDTH, N**3),
    "adakron": (WIDTH * (4 + R // 4 + R), 4 + R // 4 + WIDTH),
    "madakron": (WIDTH * (2 * (4 + R // 4) + R), 2 * (4 + R // 4) + WIDTH),
    "madakron-partial": (WIDTH * (2 * 4 + R // 4 + R), 2 * 4 + R // 4 + WIDTH),
    "adamix": ((4 + 1) * R * WIDTH, 4 * R + WIDTH),
    "adamix-lora": (2 * (4 * R * WIDTH + WIDTH * R), 0),
    # ProPETL: scores in each layer, then the prototypes and the biases that go with them.
    "propetl-lora": (0, 2 * 2 * R * WIDTH, 2 * 2 * R * WIDTH),
    "propetl-padapter": (0, 2 * R * WIDTH, sum(BOTTLENECK)),
    "propetl-prefix": (0, 2 * R * WIDTH, 2 * R * WIDTH),
    "unipelt-ap": (UNIPELT, 2 * (WIDTH + 1) + 48 + WIDTH),
    "unipelt": (UNIPELT + 2 * 2 * R * WIDTH, 4 * (WIDTH + 1) + 48 + WIDTH),
    "noah": ((4 + 2 + 1) * R * WIDTH, R + WIDTH),
    "noah-supernet": ((4 + 2 + 1) * R * WIDTH, R + WIDTH),  # the widest
    "linear": (0, 0),
    "full": (0, 0),
    **{method: {kind: (0, entries(kind)) for kind in SHAPES} for method, entries in PEFT.items()},
    # Beside the blocks: the embedding of patches and the last norm, or the embeddings' norm, and biases of the pooler.
    # A core or matrices for 12 square matrices of a ViT's block; BERT's f1 and f2 count as two each.
    "fact-tt": {"vit": (OUTER, 12 * R**2), "bert": (OUTER, 8 * R**2)},
    "fact-tk": {"vit": (OUTER, 12 * R, R**3), "bert": (OUTER, 8 * R, R**3)},
    "repadapter": (2 * (R * WIDTH + R * WIDTH // 2), 2 * (R + WIDTH)),  # two groups
    "ssf": {"vit": (0, 2 * VIT_OUTPUTS, 4 * WIDTH), "bert": (0, 2 * BERT_OUTPUTS, 2 * WIDTH)},
    "hadamard": (0, 4 * WIDTH),
    "bitfit": {"vit": (0, VIT_OUTPUTS, 2 * WIDTH), "bert": (0, BERT_OUTPUTS, 2 * WIDTH)},
}
# A constant that is added to all keys moves all scores of a query alike, which a softmax does not see.
UNSEEN = ("attention.self.key.bias", "attention.self.key.scale_shift.shift")

ONLY = {
    "vpt-deep": ("vit",),
    "vpt-shallow": ("vit",),
    "noah": ("vit",),
    "noah-supernet": ("vit",),
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
    more = prompts(config)
    return DEPTH * (12 * more * WIDTH**2 + 2 * WIDTH * ((tokens + more) ** 2 - tokens**2))


def prompts(config: Method) -> int:
    """Tokens that a method adds to those of each block."""
    return config.num_tied * R if config.method.startswith(("vpt", "noah")) else 0


OWN = {
    # Of four ReLUs with half of their weights none might be alive at the two rows that a class of the ViT depends on.
    "propetl-padapter": {"activation": "gelu"},
    "noah-supernet": {"dims": (1, R)},
}


def settings(preset: str, **changes) -> Method:
    config = resolve_config(preset)
    changes = {"r": R} | OWN.get(config.method, {}) | changes
    known = {name: value for name, value in changes.items() if name in type(config).model_fields}
    return config.replace(**known)


def rows_at_first(config: Method) -> slice:
    """Of the rows of its tied weights those that have entries before training."""
    return slice(R if "max_r" in type(config).model_fields else None)


def put_in(model: nn.Module, config: Method) -> nn.Module:
    return (capaboost_text if hasattr(model, "config") else capaboost_vision).inject(model, config)


def adapted(preset: str, kind: str, **changes) -> nn.Module:
    return put_in(base(kind), settings(preset, **changes)).eval()


def trained(preset: str, kind: str, **changes) -> nn.Module:
    """Adapted, with drawn values in all that the method adds."""
    model = adapted(preset, kind, **changes)
    with torch.no_grad():
        for name, parameter in own_parameters(adapted_layers(model)).items():
            if not parameter.requires_grad:
                continue  # the places of entries, AdaLoRA's count of ranks
            parameter.copy_(drawn(name, tuple(parameter.shape), 0.2))
    return model


def out(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return logits(model)


class Examples:
    """Four steps of two epochs on the examples of `logits`, each of which is a batch of its own."""

    unit, examples = "examples", 2

    def __init__(self, stops: bool = False):
        self.stops, self.evaluations = stops, 0

    def batches(self, epoch):
        return [[0], [1]]

    def loss(self, model, batch):
        return nn.functional.cross_entropy(logits(model)[batch].float(), torch.tensor(batch))

    def evaluate(self, model):
        self.evaluations += 1
        if self.stops and self.evaluations == 2:
            raise InterruptedError
        return {}
