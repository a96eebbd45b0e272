"""Where the adapters of a transformers encoder go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

import capaboost_text.prefix  # noqa: F401  registers the attentions that take a prefix
from capaboost_core.config import CapaBoostConfig
from capaboost_core.errors import UserError
from capaboost_core.method_settings import TARGET_WORDS
from capaboost_core.plan import Plan, Target, plan_suffixes


@dataclass(frozen=True)
class Layout:
    """Full paths of the parts of one encoder layer.

    Attributes:
        q: Query projection; with `fused`, the one layer that holds q, k and v.
        k: Key projection.
        v: Value projection.
        o: Output projection of the attention.
        f1: First feed-forward layer.
        f2: Second feed-forward layer.
        attention: The self-attention; None where it takes no prefix.
        norm: Norm of the residual sum after the feed-forward part; None in layers that norm before it.
        fused: Whether q, k and v are thirds of one layer's output.
        dropouts: The dropouts right after o and f2, where there are such.
    """

    q: str
    k: str
    v: str
    o: str
    f1: str
    f2: str
    attention: str | None
    norm: str | None
    fused: bool = False
    dropouts: tuple[str, str] | None = None


BERT = Layout(
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    f1="intermediate.dense",
    f2="output.dense",
    attention="attention.self",
    norm="output.LayerNorm",
    dropouts=("attention.output.dropout", "output.dropout"),
)
FAMILIES = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "electra": BERT,
    "deberta-v2": replace(
        BERT,
        q="attention.self.query_proj",
        k="attention.self.key_proj",
        v="attention.self.value_proj",
        attention=None,
    ),
    "distilbert": Layout(
        q="attention.q_lin",
        k="attention.k_lin",
        v="attention.v_lin",
        o="attention.out_lin",
        f1="ffn.lin1",
        f2="ffn.lin2",
        attention="attention",
        norm="output_layer_norm",
    ),
    "modernbert": Layout(
        q="attn.Wqkv",
        k="attn.Wqkv",
        v="attn.Wqkv",
        o="attn.Wo",
        f1="mlp.Wi",
        f2="mlp.Wo",
        attention="attn",
        norm=None,
        fused=True,
    ),
}
LAYER = re.compile(r"(^|\.)(layer|layers)\.\d+$")


def plan(model: nn.Module, config: CapaBoostConfig) -> Plan:
    """Plan an adapter for a transformers model.

    LoRA goes to q and v (`attention-qv`, the default), to q, k, v, o, f1 and f2 (`all-linear`), or with one A for
    all three to the layer that fuses q, k and v (`fused-qkv`, ModernBERT only). PAdapter follows the
    feed-forward part, inside the norm of the residual sum where there is one; HAdapter follows o and f2; a
    prefix goes to the self-attention. The head is all that stands outside the pretrained base model,
    DeBERTa's pooler included, and it trains; the base model alone has none. A language model's output layers are
    pretrained like the rest and stay frozen, as in peft.

    Raises:
        UserError: If the architecture is not in the table and the targets are not explicit, or its attention
            takes no prefix or fuses no q, k and v.
    """
    head = _head(model)
    if config.method in ("linear", "full"):
        return Plan((), head)
    if config.targets not in TARGET_WORDS:
        suffixes = (config.targets,) if isinstance(config.targets, str) else config.targets
        return plan_suffixes(model, suffixes, head)
    layout = FAMILIES.get(model.config.model_type)
    if layout is None:
        raise UserError(
            f"no target table for {model.config.model_type}; give targets as a list of module suffixes, "
            f"or choose one of: {', '.join(FAMILIES)}"
        )
    if config.method == "prefix" and layout.attention is None:
        raise UserError(
            f"method prefix needs transformers' attention interface, which {model.config.model_type} does not use; "
            "choose lora, padapter or hadapter"
        )
    if config.method == "lora" and config.targets == "fused-qkv" and not layout.fused:
        raise UserError(
            f"targets: fused-qkv, but {model.config.model_type} has q, k and v apart; type attention-qv or all-linear"
        )
    if config.after_dropout and not layout.dropouts:
        raise UserError(f"after_dropout: {model.config.model_type} has no dropout after both layers; set it to false")
    layers = [(path, module) for path, module in model.named_modules() if LAYER.search(path)]
    return Plan(tuple(target for path, layer in layers for target in _targets(path, layer, layout, config)), head)


def _head(model: nn.Module) -> tuple[str, ...]:
    """The modules outside the base model, which are fresh unless they make a language model's output."""
    if model.base_model is model or model.get_output_embeddings() is not None:
        return ()
    return tuple(name for name, _ in model.named_children() if name != model.base_model_prefix)


def _targets(path: str, layer: nn.Module, layout: Layout, config: CapaBoostConfig) -> Iterator[Target]:
    if config.method == "padapter":
        yield Target(f"{path}.{layout.norm or layout.f2}")
    elif config.method == "hadapter":
        parts = (layout.o, layout.f2)
        if config.after_dropout:
            pairs = zip(layout.dropouts, parts, strict=True)
            yield from (Target(f"{path}.{dropout}", beside=f"{path}.{part}") for dropout, part in pairs)
        else:
            yield from (Target(f"{path}.{part}") for part in parts)
    elif config.method == "prefix":
        yield Target(f"{path}.{layout.attention}")
    else:
        if config.targets == "fused-qkv":
            yield Target(f"{path}.{layout.q}")
            return
        yield from _attention(path, layer, layout, "qv" if config.targets == "attention-qv" else "qkv")
        if config.targets == "all-linear":
            yield from (Target(f"{path}.{part}") for part in (layout.o, layout.f1, layout.f2))


def _attention(path: str, layer: nn.Module, layout: Layout, wanted: str) -> Iterator[Target]:
    if layout.fused:
        width = layer.get_submodule(layout.q).out_features // 3
        slices = tuple((i * width, (i + 1) * width) for i, letter in enumerate("qkv") if letter in wanted)
        yield Target(f"{path}.{layout.q}", slices)
    else:
        yield from (Target(f"{path}.{getattr(layout, letter)}") for letter in wanted)
