"""Write `expected.json`: outputs of the authors' modules in float64, with the commits that they are from.

    python -m tests.methods.originals.write CLONES

CLONES holds clones, or bare ones, at OWNER+NAME or OWNER+NAME/repo. Their files are read with `git show` and run from
a temporary folder; nothing of them is kept.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.originals.cases import CASES, EXPECTED, WIDTH, R, X, addition

SOURCES = {  # repository, commit, file, and what else the file imports from beside it
    "compacter": ("rabeehk/compacter", "e123daaa", "seq2seq/hypercomplex/layers.py", ("kronecker.py", "inits.py")),
    "adamix": ("microsoft/AdaMix", "d361e9d6", "src/transformers/models/expert_soup.py", ()),
    "adakron": ("DetectiveMB/AdaKron", "a5187e1c", "src/transformers/models/expert_soup.py", ()),
    "madakron-partial": ("DetectiveMB/AdaKron", "a5187e1c", "NLG/src/expert_soup.py", ()),
    "propetl": ("ChaosCodes/ProPETL", "1c08f19c", "propetl-roberta/src/transformers/adapters/modeling.py", ()),
    "unipelt": ("morningmoni/UniPELT", "53d3c359", "lora_layers.py", ()),
}


def read(clones: Path, repository: str, commit: str, path: str) -> str:
    clone = clones / repository.replace("/", "+")
    clone = clone / "repo" if (clone / "repo").is_dir() else clone
    command = ["git", "-C", str(clone), "show", f"{commit}:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def original(clones: Path, name: str, folder: Path) -> ModuleType:
    """The authors' file as a module."""
    repository, commit, path, beside = SOURCES[name]
    package = folder / name.replace("-", "_")
    package.mkdir()
    (package / "__init__.py").touch()
    for other in (path, *(f"{path.rpartition('/')[0]}/{other}" for other in beside)):
        text = read(clones, repository, commit, other)
        if name == "propetl":  # a file of a package; the class of the masks alone
            found = next(node for node in ast.parse(text).body if getattr(node, "name", "") == "GetSubnet")
            text = f"from torch import autograd\n{ast.get_source_segment(text, found)}\n"
        (package / Path(other).name).write_text(text)
    return import_module(f"{package.name}.{Path(path).stem}")


def set_linear(linear: nn.Module, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def of_compacter(theirs: ModuleType, ours: nn.Module) -> Tensor:
    kind = dict(c_init="normal", w_init="glorot-uniform", shared_phm_rule=True, factorized_phm=True, phm_rank=2)
    down, up = (theirs.PHMLinear(*sizes, 4, **kind) for sizes in ((WIDTH, R), (R, WIDTH)))
    for layer, name in ((down, "down"), (up, "up")):
        layer.double().set_phm_rule(phm_rule=ours.slow)
        layer.W_left.copy_(getattr(ours, f"{name}_left").mT)
        layer.W_right.copy_(getattr(ours, f"{name}_right"))
        layer.b.copy_(getattr(ours, f"{name}_bias"))
    return up(F.silu(down(X)))


def of_experts(theirs: ModuleType, ours: nn.Module, places: dict[str, str], up: Tensor, **sizes: int) -> Tensor:
    """An `ExpertSoup` with our weights, by the authors' name of each mixture."""
    soup = theirs.ExpertSoup(WIDTH, R, "gelu", **sizes).double().eval()
    for place, name in places.items():
        experts = getattr(soup, place).deepspeed_experts
        weights = getattr(ours, name).packed.view(len(experts), -1, WIDTH)
        biases = getattr(ours, f"{name}_bias").view(len(experts), -1)
        for expert, weight, bias in zip(experts, weights, biases, strict=True):
            set_linear(expert, weight, bias)
        getattr(soup, place).expert_score_weight.zero_()
    set_linear(soup.MoA_B.deepspeed_experts[0], up.T, ours.up_bias)
    return soup(X, torch.zeros_like(X))


def of_unipelt(theirs: ModuleType, ours: nn.Module) -> Tensor:
    layer = theirs.LoRA_Linear(WIDTH, WIDTH, r=R, lora_alpha=16, add_gate=True, merge_weights=False).double()
    set_linear(layer, ours.weight, ours.bias)
    layer.lora_A.copy_(ours.lora_A.packed.view(R, WIDTH))
    layer.lora_B.copy_(ours.lora_B.packed.view(R, WIDTH).T)
    set_linear(layer.lora_gate, ours.gate.weight, ours.gate.bias)
    return layer(X)


@torch.no_grad()
def run(name: str, theirs: ModuleType) -> Tensor:
    ours = addition(name)
    if name == "compacter":
        return of_compacter(theirs, ours)
    if name == "propetl":
        return ours.prototype * theirs.GetSubnet.apply(ours.scores[0].abs(), 0.25)
    if name == "unipelt":
        return of_unipelt(theirs, ours)
    up = ours.up.packed.view(R, WIDTH)
    if name == "adamix":
        return of_experts(theirs, ours, {"MoA_A": "down"}, up, num_expert=3, inference_level=3, sharing_up=1)
    if name == "adakron":
        return of_experts(theirs, ours, {"MoA_A1": "right", "MoA_A2": "left"}, up)
    # Their product has the factors in the other order: the same hidden values in another one.
    up = up.view(4, R // 4, WIDTH).transpose(0, 1).reshape(R, WIDTH)
    return of_experts(theirs, ours, {"MoA_A": "left", "MoA_A1": "right"}, up, num_expert=3)


def main(clones: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        outputs = {name: run(name, original(clones, name, Path(folder))).tolist() for name in CASES}
    cases = {name: {"source": "{}@{}:{}".format(*SOURCES[name]), "output": outputs[name]} for name in CASES}
    EXPECTED.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
