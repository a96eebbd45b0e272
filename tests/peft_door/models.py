"""Tiny models in which peft's door is tried, their inputs, and the example that trains one."""

import importlib.util
from pathlib import Path
from types import ModuleType

import timm
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForSequenceClassification,
)

SEEDED = torch.Generator().manual_seed(0)
IMAGES = torch.randn(8, 3, 32, 32, generator=SEEDED)
TOKENS = torch.randint(3, 50, (8, 7), generator=SEEDED)
SIZES = dict(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
DECODER = SIZES | ENDS | dict(num_key_value_heads=2, max_position_embeddings=32)
T5 = dict(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=2)
DECODERS = {
    "llama": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER | {"head_dim": 4},
    "gemma3_text": DECODER | {"head_dim": 4, "query_pre_attn_scalar": 4},
    "mistral": DECODER | {"head_dim": 4},
    "phi3": DECODER,
    "gpt2": ENDS | dict(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=32),
    "mixtral": DECODER | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "t5": T5 | dict(decoder_start_token_id=0),
    "bart": ENDS
    | dict(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4)
    | dict(decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32)
    | dict(decoder_start_token_id=2, forced_eos_token_id=2),
}


def vit(**changes) -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return timm.create_model("vit_tiny_patch16_224", **sizes | changes).eval()


def bert(**changes) -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=3, **changes)).eval()


def decoder(family: str) -> nn.Module:
    torch.manual_seed(0)
    kind = AutoModelForSeq2SeqLM if family in ("t5", "bart") else AutoModelForCausalLM
    return kind.from_config(AutoConfig.for_model(family, **DECODERS[family])).eval()


def logits(model: nn.Module, inputs: torch.Tensor, **more) -> torch.Tensor:
    if not inputs.is_floating_point() and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        more["decoder_input_ids"] = inputs[:, :3]
    made = model(inputs, **more)
    return made if isinstance(made, torch.Tensor) else made.logits


def trained(model: nn.Module, seed: int = 1, part: str = "") -> nn.Module:
    """With random values in what trains, or in what has `part` in its name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name if part else parameter.requires_grad:
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.3 * values)
    return model.eval()


def example(name: str) -> ModuleType:
    """A program of examples/, as a module."""
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
