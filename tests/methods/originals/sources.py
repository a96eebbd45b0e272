"""The authors' files, from clones, as modules."""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

TORCH = "import torch\nfrom torch import autograd, nn\nimport torch.nn.functional as F\n"
TIMM = (
    TORCH + "from functools import partial\nfrom torch import _assert\nfrom timm.layers import DropPath, to_2tuple\n"
)
VPT = TORCH + (
    "import math\nfrom functools import reduce\nfrom operator import mul\nfrom torch.nn import Dropout\n"
    "from torch.nn.modules.utils import _pair\nfrom tests.methods.originals.stand_ins import Transformer\n"
)
NOAH = TIMM + (
    "import math\nfrom collections import OrderedDict\n"
    "from timm.layers import Mlp, PatchEmbed, lecun_normal_, trunc_normal_\n"
)


@dataclass(frozen=True)
class Source:
    """A file of a repository at a commit.

    Attributes:
        beside: What else it imports from its folder.
        names: The definitions that are taken, if not the whole file.
        header: The imports that these need.
    """

    repository: str
    commit: str
    path: str
    beside: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    header: str = TORCH

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit}:{self.path}"

    def module(self, clones: Path, folder: Path, name: str) -> ModuleType:
        """Its content, written to a package in a folder from which modules are imported."""
        package = folder / name.replace("-", "_")
        package.mkdir()
        (package / "__init__.py").touch()
        for other in (self.path, *(f"{self.path.rpartition('/')[0]}/{other}" for other in self.beside)):
            (package / Path(other).name).write_text(self._taken(self._read(clones, other)))
        return import_module(f"{package.name}.{Path(self.path).stem}")

    def _read(self, clones: Path, path: str) -> str:
        clone = clones / self.repository.replace("/", "+")
        clone = clone / "repo" if (clone / "repo").is_dir() else clone
        command = ["git", "-C", str(clone), "show", f"{self.commit}:{path}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _taken(self, text: str) -> str:
        if not self.names:
            return text
        found = [node for node in ast.parse(text).body if getattr(node, "name", "") in self.names]
        return self.header + "\n\n".join(ast.get_source_segment(text, node) for node in found)


PETL, FORWARDS = ("JieShibo/PETL-ViT", "026e4f12"), ("fact_forward_attn", "fact_forward_mlp")
PROMPTS = Source("KMnP/vpt", "4410440e", "src/models/vit_prompt/vit.py", names=("PromptedTransformer",), header=VPT)
SSF = ("init_ssf_scale_shift", "ssf_ada", "Mlp", "Attention", "LayerScale", "Block", "PatchEmbed", "VisionTransformer")
NOAH_NAMES = ("Attention", "Block", "VisionTransformer", "_init_vit_weights", "QuickGELU", "AdapterSuper")
SOURCES = {
    "compacter": Source(
        "rabeehk/compacter", "e123daaa", "seq2seq/hypercomplex/layers.py", ("kronecker.py", "inits.py")
    ),
    "adamix": Source("microsoft/AdaMix", "d361e9d6", "src/transformers/models/expert_soup.py"),
    "adakron": Source("DetectiveMB/AdaKron", "a5187e1c", "src/transformers/models/expert_soup.py"),
    "madakron-partial": Source("DetectiveMB/AdaKron", "a5187e1c", "NLG/src/expert_soup.py"),
    "propetl": Source(
        "ChaosCodes/ProPETL",
        "1c08f19c",
        "propetl-roberta/src/transformers/adapters/modeling.py",
        names=("GetSubnet",),
    ),
    "unipelt": Source("morningmoni/UniPELT", "53d3c359", "lora_layers.py"),
    "adaptformer": Source("ShoufaChen/AdaptFormer", "6967d676", "models/adapter.py"),
    "vpt-shallow": PROMPTS,
    "vpt-deep": PROMPTS,
    "ssf": Source("dongzelian/SSF", "e94e0e70", "models/vision_transformer.py", names=SSF, header=TIMM),
    "fact-tt": Source(*PETL, "FacT/fact_tt.py", names=FORWARDS),
    "fact-tk": Source(*PETL, "FacT/fact_tk.py", names=FORWARDS),
    "repadapter": Source("luogen1996/RepAdapter", "360992fc", "repadapter.py"),
    "noah-supernet": Source(
        "ZhangYuanhan-AI/NOAH",
        "e9c55f36",
        "model/supernet_vision_transformer_timm.py",
        ("module/adapter_super.py",),
        NOAH_NAMES,
        NOAH,
    ),
}
