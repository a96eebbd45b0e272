"""Which layers of transformers' architectures play which role: an `Architecture` for each way of building a block."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel

from capaboost_core.errors import UserError
from capaboost_core.plan import Architecture, Roles
from capaboost_core.wrappers import check_bare
from capaboost_text import layers  # noqa: F401  register the classes that methods adapt


def _grouped(model: nn.Module, qkv: nn.Module) -> tuple[int, int, int]:
    """Grouped-query attention: k and v have fewer heads than q."""
    config = cast(Any, model.config)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shared = size * config.num_key_value_heads
    return size * config.num_attention_heads, shared, shared


BERT = Architecture(
    blocks=r"layers?\.\d+",
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    f1=("intermediate.dense",),
    f2=("output.dense",),
    feed_forward="output",
    norm="output.LayerNorm",
    attention="attention.self",
    attention_norm="attention.output.LayerNorm",
    o_dropout="attention.output.dropout",
    f2_dropout="output.dropout",
)
LLAMA = Architecture(
    blocks=r"layers\.\d+",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    f1=("mlp.gate_proj", "mlp.up_proj"),
    f2=("mlp.down_proj",),
)
EXPERTS = (
    "mixtral: transformers holds the weights of all experts in one tensor, not in layers that an adapter can take; "
    "choose targets=attention-qv, or adapt them by target_parameters of capaboost_peft (docs/peft.md)"
)
# What is fresh within a base model: the parts that join two checkpoints, and a decoder for a task.
FRESH = {"vision-text-dual-encoder": ("visual_projection", "text_projection", "logit_scale")}
WITHIN = {"perceiver": ("perceiver.decoder",)}
FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), BERT),
    # Its attention does not go through transformers' attention interface, so that it takes no prefix.
    "deberta-v2": replace(
        BERT,
        q="attention.self.query_proj",
        k="attention.self.key_proj",
        v="attention.self.value_proj",
        attention="",
    ),
    # It adds a bias of position to its scores by itself, not through transformers' attention interface: no prefix.
    "mpnet": replace(
        BERT,
        q="attention.attn.q",
        k="attention.attn.k",
        v="attention.attn.v",
        o="attention.attn.o",
        attention="",
        attention_norm="attention.LayerNorm",
        o_dropout="attention.dropout",
    ),
    "distilbert": Architecture(
        blocks=r"layer\.\d+",
        q="attention.q_lin",
        k="attention.k_lin",
        v="attention.v_lin",
        o="attention.out_lin",
        f1=("ffn.lin1",),
        f2=("ffn.lin2",),
        feed_forward="ffn",
        norm="output_layer_norm",
        attention="attention",
        attention_norm="sa_layer_norm",
    ),
    "modernbert": Architecture(
        blocks=r"layers\.\d+",
        qkv="attn.Wqkv",
        o="attn.Wo",
        f1=("mlp.Wi",),
        f2=("mlp.Wo",),
        attention="attn",
        attention_norm="mlp_norm",
        feed_forward="mlp",
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2"), LLAMA),
    "phi3": replace(LLAMA, q="", k="", v="", qkv="self_attn.qkv_proj", f1=("mlp.gate_up_proj",), widths=_grouped),
    "gpt2": Architecture(blocks=r"h\.\d+", qkv="attn.c_attn", o="attn.c_proj", f1=("mlp.c_fc",), f2=("mlp.c_proj",)),
    "opt": replace(LLAMA, o="self_attn.out_proj", f1=("fc1",), f2=("fc2",)),
    "mixtral": replace(LLAMA, f1=(), f2=(), missing={"f1": EXPERTS, "f2": EXPERTS}),
    # Decoder blocks of these two attend to the encoder's output too.
    "t5": Architecture(
        blocks=r"block\.\d+",
        q=("layer.0.SelfAttention.q", "layer.1.EncDecAttention.q"),
        k=("layer.0.SelfAttention.k", "layer.1.EncDecAttention.k"),
        v=("layer.0.SelfAttention.v", "layer.1.EncDecAttention.v"),
        o=("layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"),
        f1=tuple(f"layer.{i}.DenseReluDense.{name}" for i in (1, 2) for name in ("wi", "wi_0", "wi_1")),
        f2=("layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"),
    ),
    "bart": Architecture(
        blocks=r"layers\.\d+",
        q=("self_attn.q_proj", "encoder_attn.q_proj"),
        k=("self_attn.k_proj", "encoder_attn.k_proj"),
        v=("self_attn.v_proj", "encoder_attn.v_proj"),
        o=("self_attn.out_proj", "encoder_attn.out_proj"),
        f1=("fc1",),
        f2=("fc2",),
    ),
}


def roles_of(model: nn.Module) -> Roles:
    """The roles of a transformers model's layers.

    The head is all that stands outside the pretrained base model, DeBERTa's pooler included, and it trains; the base
    model alone has none. A language model's output layers are pretrained like the rest and stay frozen, as in peft.

    Raises:
        UserError: If the model is none of transformers', or is wrapped.
    """
    check_bare(model, ())
    if not isinstance(model, PreTrainedModel):
        raise UserError(_not_of_transformers(model))
    kind, head = model.config.model_type, _head(model)
    found = FAMILIES[kind].roles(model, head) if kind in FAMILIES else None
    if found and found.blocks:
        return replace(found, embedding=_embedding(model))
    missing = (
        f"no roles are known of the architecture {kind}; give targets as a list of module suffixes, or choose one of: "
    )
    return Roles(head=head, missing=missing + ", ".join(FAMILIES))


def _not_of_transformers(model: nn.Module) -> str:
    """What to type for another model: the one of transformers in it, if it holds one."""
    kind = f"{type(model).__module__}.{type(model).__name__}"
    held = next((path for path, module in model.named_modules() if isinstance(module, PreTrainedModel)), None)
    part = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", f"model.{held}")
    advice = f"inject into the transformers model in it, {part}" if held else "give a model that transformers made"
    other = "capaboost_vision.inject for a timm model, or capaboost_core.inject with a list of targets"
    return f"{kind} is no model of transformers; {advice}, or use {other}"


def _embedding(model: PreTrainedModel) -> str | None:
    embedding = _input_embeddings(model)
    return next((path for path, module in model.named_modules() if module is embedding), None)


def _input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # a user's class whose encoder is not called as transformers would
        return None


def _head(model: PreTrainedModel) -> tuple[str, ...]:
    """Children and parameters of the model itself that belong to no pretrained part.

    Pretrained are the transformers models in it, whatever they are called, the embeddings that they share, and all of
    a base model or of a language model.
    """
    base: Any = MODEL_MAPPING.get(type(model.config), ())
    if isinstance(model, base if isinstance(base, tuple) else (base,)):
        return FRESH.get(model.config.model_type, ())
    outputs = model.get_output_embeddings()
    if outputs is not None and not any("DoubleHeads" in cls.__name__ for cls in type(model).__mro__):
        return ()
    embeddings = _input_embeddings(model)
    pretrained = {
        name
        for name, child in model.named_children()
        if name == model.base_model_prefix
        or any(isinstance(m, PreTrainedModel) or m is outputs or m is embeddings for m in child.modules())
    }
    if not pretrained or (model.base_model is model and not _is_for_a_task(type(model))):
        return ()
    own = [name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))]
    within = tuple(path for path in WITHIN.get(model.config.model_type, ()) if path in dict(model.named_modules()))
    return tuple(name for name in own if name not in pretrained) + within


def _is_for_a_task(cls: type) -> bool:
    return "For" in cls.__name__ or not cls.__module__.startswith("transformers.")
