"""CapaBoost-LoRA on a decoder, in a training loop of one's own: perplexity before and after, then a continuation.

python examples/causal_lm.py --model MODEL --text book.txt --output adapters/book

MODEL is a name on the hub or a folder; without one, a tiny random model begins to learn this file. `capaboost
train-lm` trains the same with checkpoints, packing and several processes.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import capaboost_text
from capaboost_core import load_adapter, merge, save_adapter, trainable_parameters
from capaboost_text.encoders import load_language_model

ADAPTER = {"method": "lora", "num_tied": 2, "density": 0.5, "r": 8, "alpha": 16.0, "targets": "all-linear"}


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Train; returns the perplexity of the held-out blocks before and after."""
    args = _parser().parse_args(arguments)
    torch.manual_seed(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        name = args.model or _tiny_model(Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(name)
        text = args.text.read_text(encoding="utf-8")
        tokens = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
        blocks = tokens[: len(tokens) // args.length * args.length].view(-1, args.length)  # (blocks, tokens)
        if len(blocks) < 2:
            raise SystemExit(f"{args.text} has {len(tokens)} tokens; give more text, or --length {len(tokens) // 2}")
        held_out, train = blocks[::10], blocks[torch.arange(len(blocks)) % 10 != 0]
        model: Any = capaboost_text.from_pretrained(name, task="causal-lm", capaboost=ADAPTER)
        before = perplexity(model, held_out)
        fit(model, train, args)
        after = perplexity(model, held_out)
        print(f"perplexity {before:.2f} before, {after:.2f} after; {count(model):,} trained parameters")
        save_adapter(model, args.output)
        again: Any = load_adapter(load_language_model(name), args.output)  # as another program would
    merge(again)  # generates as fast as the base model
    prompt = tokenizer(text[:20], return_tensors="pt")
    made = again.eval().generate(**prompt, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    print(repr(tokenizer.decode(made[0])), f"adapter in {args.output}")
    return before, after


def fit(model: nn.Module, blocks: Tensor, args: argparse.Namespace) -> None:
    """Passes over the blocks in random order, with a rate that falls to 0."""
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=args.lr)
    steps = args.epochs * math.ceil(len(blocks) / args.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    model.train()
    for _ in range(args.epochs):
        for batch in blocks[torch.randperm(len(blocks))].split(args.batch_size):
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def perplexity(model: nn.Module, blocks: Tensor) -> float:
    """exp of the mean loss of a token; all blocks have the same number of them."""
    model.eval()
    losses = [model(input_ids=block[None], labels=block[None]).loss.item() for block in blocks]
    return math.exp(sum(losses) / len(losses))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())


def _tiny_model(folder: Path) -> Path:
    """A random model of two blocks over bytes, as `save_pretrained` leaves it."""
    alphabet = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(alphabet), **sizes, **ends)).save_pretrained(folder)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a decoder; default: a tiny random one")
    parser.add_argument("--text", type=Path, default=Path(__file__), help="default: this file")
    parser.add_argument("--output", type=Path, default=Path("adapters/causal-lm"))
    parser.add_argument("--length", type=int, default=128, help="tokens of a block")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
