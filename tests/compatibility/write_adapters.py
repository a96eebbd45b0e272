"""Write the adapters of `tests/compatibility/0.1.0` with the version that is checked out.

    python -m tests.compatibility.write_adapters tests/compatibility/0.1.0

Run once for a version, before the next one changes what it writes; files that are there are never written again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from capaboost_core import save_adapter, trainable_parameters
from tests.compatibility.models import adapt, base, drawn, logits

PLAIN = dict(num_tied=1, density=1.0)
CASES: dict[str, tuple[str, dict]] = {
    "lora": ("vit", dict(method="lora", r=4)),
    "lora-d4": ("vit", dict(method="lora", r=4, num_tied=4, density=0.25, seed=7, alpha=8)),
    "lora-same": ("vit", dict(method="lora", r=4, mask="same")),
    "lora-nm": ("vit", dict(method="lora", r=4, mask="nm", n=2, m=4)),
    "lora-dropout": ("vit", dict(method="lora", r=4, mask="dropout")),
    "lora-plain": ("vit", dict(method="lora", r=4, dropout=0.1, **PLAIN)),
    "lora-official": ("vit", dict(method="lora", r=4, init="official")),
    "lora-all": ("vit", dict(method="lora", r=4, targets="all-linear")),
    "lora-listed": ("vit", dict(method="lora", r=4, targets=["attn.proj", "mlp.fc1"])),
    "lora-beit": ("beit", dict(method="lora", r=4)),
    "padapter": ("vit", dict(method="padapter", r=4)),
    "padapter-plain": ("vit", dict(method="padapter", r=4, alpha=2, **PLAIN)),
    "padapter-nm": ("vit", dict(method="padapter", r=4, mask="nm", n=2, m=4)),
    "hadapter": ("vit", dict(method="hadapter", r=4, init="official")),
    "prefix": ("vit", dict(method="prefix", r=4)),
    "linear": ("vit", dict(method="linear", **PLAIN)),
    "full": ("vit", dict(method="full", **PLAIN)),
    "bert-lora": ("bert", dict(method="lora", r=4)),
    "bert-padapter": ("bert", dict(method="padapter", r=4)),
    "bert-hadapter": ("bert", dict(method="hadapter", r=4)),
    "bert-prefix": ("bert", dict(method="prefix", r=4)),
    "modernbert-lora": ("modernbert", dict(method="lora", r=4, targets="all-linear")),
}


def write(folder: Path) -> None:
    """An adapter a case, and `expected.json` with its base model and the logits."""
    expected = {}
    for name, (kind, config) in CASES.items():
        model = adapt(base(kind), config)
        with torch.no_grad():
            for key, parameter in trainable_parameters(model).items():
                parameter.copy_(drawn(f"{name} {key}", tuple(parameter.shape), 0.2))
            expected[name] = {"base": kind, "logits": logits(model.eval()).tolist()}
        save_adapter(model, folder / name)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if target.exists():
        sys.exit(f"{target} is there already; choose another folder")
    write(target)
