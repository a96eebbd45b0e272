"""peft's own tests as a judge: each file is run with LoraConfig, then with CapaBoostConfig in its place.

python -m tests.peft_door.run_peft_tests CHECKOUT [FILE ...] prints the table of docs/peft.md. CHECKOUT holds `tests/`
of peft's repository at the version that is installed. Nothing is read from a hub: tiny random models stand where
peft's tests look for its test models, and what else is not there fails in both runs, so that it counts for neither.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

FILES = [
    "custom_models",
    "decoder_models",
    "encoder_decoder_models",
    "initialization",
    "low_level_api",
    "mixed",
]
SIZES = dict(vocab_size=1024, num_hidden_layers=2, num_attention_heads=4, hidden_size=16, max_position_embeddings=512)
ROPE = SIZES | dict(intermediate_size=32, num_key_value_heads=4)
GPT = dict(vocab_size=1024, n_layer=2, n_head=4, n_embd=32, n_positions=512, bos_token_id=1, eos_token_id=2)
PEFT, HF = "peft-internal-testing/tiny-", "hf-internal-testing/tiny-"
HUB = {  # test models by their names on the hub: type and sizes
    PEFT + "random-OPTForCausalLM": ("opt", SIZES | dict(ffn_dim=32, word_embed_proj_dim=16)),
    "peft-internal-testing/opt-125m": ("opt", SIZES | dict(ffn_dim=32, word_embed_proj_dim=16)),
    PEFT + "random-GPT2LMHeadModel": ("gpt2", GPT),
    PEFT + "random-gpt2": ("gpt2", GPT),
    HF + "random-gpt2": ("gpt2", GPT),
    PEFT + "random-GPTJForCausalLM": ("gptj", GPT | dict(rotary_dim=4)),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("llama", ROPE),
    HF + "random-LlamaForCausalLM": ("llama", ROPE),
    PEFT + "dummy-qwen2": ("qwen2", ROPE),
    HF + "random-Gemma3ForCausalLM": ("gemma3_text", ROPE | dict(head_dim=4)),
    HF + "random-MistralForCausalLM": ("mistral", ROPE),
    PEFT + "random-T5ForConditionalGeneration-calibrated": (
        "t5",
        dict(vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0),
    ),
    PEFT + "random-BartForConditionalGeneration": (
        "bart",
        dict(vocab_size=1024, d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=4, decoder_ffn_dim=4)
        | dict(encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=100),
    ),
}
REASONS = {  # what a case that LoRA passes stumbles over: a pattern of the error, in words
    r"(use_\w+|\w+_config|alora\w+|lora_bias|layer_replication|ensure_weight_tying): not with": "a setting of LoRA "
    "that is refused: DoRA and the other variants, biases of B, replicated layers, tied embeddings",
    r"init_lora_weights is": "a start that is refused: PiSSA, OLoRA, EVA and so on split or measure the weight",
    r"is an embedding": "an embedding is refused",
    r"is a grouped convolution": "a grouped convolution is refused",
    r"target the attention itself": "the projection inside an attention is refused",
    r"weighted sum of adapters": "weighted sums are refused",
    r"PeftMixedModel|mixed models": "peft mixes the types of a list of its own",
    r"slices \* d \* r": "the test prepares for hot-swapping at rank r: an increment has rank d r",
    r"float64\(0.0\) >": "the test compares the distribution of a start, of which masks leave zeros",
    r"Regex pattern did not match": "the test expects a text that names LoRA's type, class or rank",
    r"masks of adapter": "masks follow paths: a base whose modules were renamed is refused",
    r"lora_[AB]|Rank \d|in_features|packed|missing_keys|^AssertionError: assert \d+ == 8": "the test looks for "
    "`weight` parameters of rank r: here are `packed` entries and rank d r",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="folder with peft's tests/")
    parser.add_argument("files", nargs="*", default=FILES, help="names without test_; by default: %(default)s")
    parser.add_argument("--outcomes", type=Path, help="folder that keeps the outcomes, and has those of earlier runs")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = args.outcomes or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        write_hub(Path(made) / "hub")
        print("| file | cases | LoRA passes | CapaBoost passes | reasons |\n|---|---:|---:|---:|---|")
        for file in args.files:
            print(
                row(file, *(outcomes(args.checkout, file, ours, folder, Path(made)) for ours in ("", "1"))), flush=True
            )


def write_hub(folder: Path) -> None:
    """Tiny random models in the layout of the hub's cache."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    for name, (kind, sizes) in HUB.items():
        torch.manual_seed(0)
        auto = AutoModelForSeq2SeqLM if kind in ("t5", "bart") else AutoModelForCausalLM
        place = folder / f"models--{name.replace('/', '--')}"
        auto.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(place / "snapshots" / "tiny")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("tiny")


def outcomes(checkout: Path, file: str, ours: str, folder: Path, made: Path) -> dict[str, dict[str, str]]:
    """Outcome and reason of each test of a file that makes a configuration of LoRA."""
    kept = (folder / f"{file}-{'ours' if ours else 'lora'}.jsonl").resolve()
    if not kept.exists():
        here = Path(__file__).resolve()
        path = os.pathsep.join([str(here.parent), str(here.parents[2]), os.environ.get("PYTHONPATH", "")])
        more = {"OURS": ours, "OUTCOMES": f"{kept}.partial", "PYTHONPATH": path}
        hub = {"HF_HUB_CACHE": str(made / "hub"), "HF_HUB_OFFLINE": "1"}
        plain = [
            "-q",
            "-o",
            "addopts=",
            "-o",
            "filterwarnings=",
            "-p",
            "no:cacheprovider",
            "-p",
            "lora_is_ours",
            f"tests/test_{file}.py",
        ]
        Path(f"{kept}.partial").write_text("")
        command = [sys.executable, "-m", "pytest", *plain]
        subprocess.run(command, cwd=checkout, env=os.environ | more | hub, stdout=subprocess.DEVNULL, check=False)
        os.replace(f"{kept}.partial", kept)
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    return {re.sub("CapaBoost|Lora", "LoRA", line["test"]): line for line in lines}


def row(file: str, lora: dict[str, dict], ours: dict[str, dict]) -> str:
    """A row of the table: of the cases that LoRA passes, how many CapaBoost passes, and why not the others."""
    passed = [test for test, line in lora.items() if line["outcome"] == "passed"]
    reasons = Counter(
        why(ours[test]["reason"] if test in ours else "not run") for test in passed if not _passes(ours.get(test))
    )
    also = sum(_passes(ours.get(test)) for test in passed)
    text = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"| `test_{file}.py` | {len(lora)} | {len(passed)} | {also} | {text} |"


def _passes(line: dict | None) -> bool:
    return line is not None and line["outcome"] == "passed"


def why(reason: str) -> str:
    for pattern, words in REASONS.items():
        if re.search(pattern, reason):
            return words
    return f"`{' '.join(reason.split())[:120]}`"


if __name__ == "__main__":
    main()
