"""Which presets adapt which models, tried and not written: results/support.json, from which the documentation's table
and the pages of the methods are made.

    python tools/probe_support.py                 # every model and preset, some four minutes on one core
    python tools/probe_support.py --models gpt2   # prints, writes nothing

A model is built without weights: of timm, RoBERTa and DeBERTaV3 in its published size, others small. What a preset
does with trained values (whether it merges, whether it becomes a plain LoRA) is tried on a ViT of two blocks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout that is not installed

import timm
import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification

import capaboost_text
import capaboost_vision
from capaboost.report.models import Sizes, make_subject
from capaboost_core import PRESETS, UserError, merge, parameter_counts, save_peft, trainable_parameters
from capaboost_core.files import write_atomically
from capaboost_core.injection import adapted_layers, injection_of, own_parameters

TITLE, _, DETAILS = str(__doc__).partition("\n\n")
OUTPUT = Path(__file__).resolve().parents[1] / "results" / "support.json"
# A model of each architecture that roles are known of, by its class in timm or its type in transformers.
VISION = {
    "VisionTransformer": "vit_base_patch16_224",
    "VisionTransformer (CLIP)": "vit_base_patch16_clip_224",
    "VisionTransformer (DINOv2)": "vit_base_patch14_dinov2",
    "Beit": "beit_base_patch16_224",
    "Eva (EVA-02)": "eva02_base_patch14_224",
    "Eva (DINOv3)": "vit_base_patch16_dinov3",
    "SwinTransformer": "swin_base_patch4_window7_224",
    "SwinTransformerV2": "swinv2_base_window8_256",
    "NaFlexVit": "naflexvit_base_patch16_gap",
    "PoolingVisionTransformer": "pit_b_224",
    "MultiScaleVit": "mvitv2_base",
    "Hiera": "hiera_base_224",
    "Xcit": "xcit_small_12_p16_224",
    "Cait": "cait_s24_224",
    "VisionTransformerRelPos": "vit_relpos_base_patch16_224",
    "VisionTransformerSAM": "samvit_base_patch16",
    "TinyVit": "tiny_vit_21m_224",
    "MaxxVit": "maxvit_base_tf_224",
    "ConvNeXt": "convnext_base",
}
SMALL = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
DECODER = {**SMALL, "num_key_value_heads": 2, "head_dim": 64, "pad_token_id": 0}
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "phi3", "mixtral")
TEXT = {
    "roberta": "roberta-base",
    "deberta-v2": "microsoft/deberta-v3-base",
    **{name: {**SMALL, "pad_token_id": 0} for name in ("bert", "xlm-roberta", "electra", "mpnet", "modernbert")},
    "distilbert": {"n_layers": 2},
    **dict.fromkeys(DECODERS, MappingProxyType(DECODER)),
    "gpt2": {"n_layer": 2, "pad_token_id": 0},
    "opt": {"num_hidden_layers": 2},
    "t5": {"num_layers": 2},
    "bart": {"encoder_layers": 2, "decoder_layers": 2},
}
TRIED_ON = {"model_name": "vit_tiny_patch16_224", "img_size": 32, "depth": 2, "num_classes": 10}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=TITLE, epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--models", metavar="NAMES", help="some of the models, with commas; they are printed alone")
    names = parser.parse_args().models
    if names:
        unknown = {*names.split(",")} - {*VISION, *TEXT}
        if unknown:
            parser.error(f"unknown {', '.join(sorted(unknown))}; choose of {', '.join([*VISION, *TEXT])}")
        print(json.dumps({name: probe(name) for name in names.split(",")}, indent=1))
        return
    content = json.dumps(everything(), indent=1) + "\n"
    write_atomically(OUTPUT, lambda file: file.write(content.encode()))
    print(f"wrote {OUTPUT}")


def everything() -> dict[str, Any]:
    """What the file holds."""
    found = {name: probe(name) for name in tqdm([*VISION, *TEXT], desc="models", disable=None)}
    return {
        "command": "python tools/probe_support.py",
        "versions": {library.__name__: library.__version__ for library in (timm, torch)},
        "models": found,
        "block": {name: in_block(name) for name in PRESETS},
        "presets": {name: tried(name) for name in tqdm(PRESETS, desc="presets", disable=None)},
    }


def probe(architecture: str) -> dict[str, int | str]:
    """The trained entries by preset, the head's not among them, or the sentence that refuses it."""
    build, adapt = maker(architecture)
    return {
        name: _attempt(lambda m=method: parameter_counts(adapt(build(), m)).trainable)
        for name, method in PRESETS.items()
    }


def maker(architecture: str) -> tuple[Callable[[], nn.Module], Callable[..., nn.Module]]:
    """What builds a model of the architecture without weights, and what adapts it."""
    known = VISION.get(architecture) or TEXT[architecture]
    if isinstance(known, str):
        subject = make_subject(known, Sizes())
        return subject.build, subject.inject
    config = AutoConfig.for_model(architecture, **known)

    def build() -> nn.Module:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)

    return build, capaboost_text.inject


def _attempt(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except UserError as error:
        return str(error)


def in_block(preset: str) -> dict[str, list[list[int]] | None]:
    """The modules that a preset adapts or trains in ViT-B/16's first block and before it, with slices of outputs."""
    build, adapt = maker("VisionTransformer")
    model = adapt(build(), PRESETS[preset])
    plan, own = injection_of(model).plan, own_parameters(adapted_layers(model))
    trained = {name for name in trainable_parameters(model) if name not in own and not name.startswith("head")}
    found = dict.fromkeys(sorted(name.rpartition(".")[0] for name in trained))
    found |= {target.path: target.slices and [list(part) for part in target.slices] for target in plan.targets}
    return {path: slices for path, slices in found.items() if path.startswith(("blocks.0", "patch_embed"))}


def tried(preset: str) -> dict[str, bool | str]:
    """What becomes of trained values: whether the model starts as its base, merges, and is written as a plain LoRA."""
    torch.manual_seed(0)
    image = torch.rand(2, 3, 32, 32)
    base = timm.create_model(**TRIED_ON).eval()
    expected = base(image)
    model = capaboost_vision.inject(base, PRESETS[preset]).eval()
    starts = torch.allclose(model(image), expected, atol=1e-5)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.02 * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory() as folder:
        lora = _attempt(lambda: bool(save_peft(model, folder)))
    return {"starts_as_base": starts, "plain_lora": lora, "merges": _attempt(lambda: _merges(model, image))}


def _merges(model: nn.Module, image: torch.Tensor) -> bool:
    """Whether the merged model gives the same outputs."""
    expected = model(image)
    return torch.allclose(merge(model)(image), expected, atol=1e-3)


if __name__ == "__main__":
    main()
