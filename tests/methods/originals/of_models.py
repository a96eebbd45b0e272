"""The logits of the tiny ViT with the authors' additions, which get the values of ours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from capaboost_core.injection import adapted_layers
from capaboost_core.methods.noah import parts_of
from tests.compatibility.models import VIT, base, logits
from tests.methods.originals.cases import IMAGES, SUBNET, R


def vit() -> nn.Module:
    return base("vit").double()


def linear(weight: Tensor) -> nn.Linear:
    """Without a bias."""
    layer = nn.Linear(*weight.T.shape, bias=False).double()
    layer.weight.copy_(weight)
    return layer


def of_vpt(theirs: ModuleType, ours: nn.Module) -> Tensor:
    prompts = [layer.prompts.tokens.packed.view(1, R, -1) for layer in adapted_layers(ours) if layer.prompts]
    deep, model = len(prompts) > 1, vit()
    chosen = SimpleNamespace(LOCATION="prepend", INITIATION="random", NUM_DEEP_LAYERS=None, DEEP_SHARED=False)
    vars(chosen).update(NUM_TOKENS=R, DROPOUT=0.1, PROJECT=-1, DEEP=deep)
    sizes = SimpleNamespace(patches={"size": (16, 16)}, hidden_size=VIT["embed_dim"], vit=model)
    sizes.transformer = {"num_layers": VIT["depth"]}
    prompted = theirs.PromptedTransformer(chosen, sizes, VIT["img_size"], False).double()
    prompted.eval()  # it returns nothing
    prompted.prompt_embeddings.copy_(prompts[0])
    if deep:
        prompted.deep_prompt_embeddings.copy_(prompts[1])
    return model.head(prompted(IMAGES)[0][:, 0])


def of_ssf(theirs: ModuleType, ours: nn.Module) -> Tensor:
    """They number the layers of a module whose outputs are scaled; the scales are attributes of it."""
    places, state = defaultdict(list), vit().state_dict()
    for path in (layer.path for layer in adapted_layers(ours)):
        places[path.rpartition(".")[0]].append(path)
    for parent, paths in places.items():
        for number, path in enumerate(paths, start=1):
            for name, value in ours.get_submodule(path).scale_shift.named_parameters():
                state[f"{parent}.ssf_{name}_{number}".lstrip(".")] = value
    model = theirs.VisionTransformer(**VIT, weight_init="skip", tuning_mode="ssf").double().eval()
    model.load_state_dict(state)
    return model(IMAGES)


def of_fact(theirs: ModuleType, ours: nn.Module) -> Tensor:
    """Of Tucker's form the attentions alone: see `cases`."""
    model, layers = vit(), {layer.path: layer for layer in adapted_layers(ours)}
    ((outer,), *_) = (layer.shared for layer in layers.values())
    theirs.vit = SimpleNamespace(FacTu=linear(outer.u.copies()[0]), FacTv=linear(outer.v.copies()[0].T))
    if outer.core is not None:
        theirs.vit.FacTc = outer.core.transpose(0, 1)
        theirs.vit.FacTp = torch.cat([layer.inner.s for layer in layers.values()]).T
    for index, block in enumerate(model.blocks):
        added = {name: layers[f"blocks.{index}.{name}"].inner.s for name in PARTS}
        act(block.attn, theirs.fact_forward_attn, added, 12 * index)
        if outer.core is None:
            act(block.mlp, theirs.fact_forward_mlp, added, 0)
    return model(IMAGES)


PARTS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def act(part: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor], s: dict[str, Tensor], first: int) -> None:
    """Have a part of a block compute as the authors', with matrices S, or with weights from column `first` on."""
    part.dp, part.drop, part.s, part.dim, part.idx = nn.Identity(), nn.Identity(), 1.0, R, first
    if s["attn.proj"].shape == (R, R):
        q, k, v = s["attn.qkv"].split(R)
        own = dict(q=q, k=k, v=v, proj=s["attn.proj"], fc1=s["mlp.fc1"], fc2=s["mlp.fc2"])
        for name, matrix in own.items():
            setattr(part, f"{name}_FacTs", linear(matrix))
    part.forward = lambda x, **_: forward(part, x)


def of_repadapter(theirs: ModuleType, ours: nn.Module) -> Tensor:
    model = vit()
    for index, block in enumerate(model.blocks):
        for name, path in (("adapter_attn", "attn.qkv"), ("adapter_mlp", "mlp.fc1")):
            bottleneck = ours.get_submodule(f"blocks.{index}.{path}").bottleneck
            adapter = theirs.RepAdapter(VIT["embed_dim"], R, 2, 1.0).double().eval()
            adapter.conv_A.weight.copy_(bottleneck.down.copies()[0].unsqueeze(-1))
            adapter.conv_B.weight.copy_(bottleneck.up.copies()[:, 0].mT.flatten(0, 1).unsqueeze(-1))
            adapter.conv_A.bias.copy_(bottleneck.down_bias)
            adapter.conv_B.bias.copy_(bottleneck.up_bias)
            setattr(block, name, adapter)
        block.forward = theirs.forward_vit_block_adapter.__get__(block)
    return logits(model)


def of_noah(theirs: ModuleType, ours: nn.Module) -> Tensor:
    """The adapter is a file of its own, which the model's imports."""
    theirs.AdapterSuper = import_module(f"{theirs.__package__}.adapter_super").AdapterSuper
    names, sizes = ("prompt_tuning", "LoRA", "adapter"), dict(super_prefix_dim=0, patch_size=16)
    model = theirs.VisionTransformer(**VIT, **sizes, **{f"super_{name}_dim": R for name in names}).double().eval()
    state, found = vit().state_dict(), zip(*parts_of(ours), strict=True)
    for block, (lora, adapter, prompts) in enumerate(found):
        state |= {
            f"blocks.{block}.attn.LoRA_a.weight": lora.lora_A.packed.view(R, -1),
            f"blocks.{block}.attn.LoRA_b.weight": lora.lora_B.packed.view(R, -1).T,
            f"blocks.{block}.adapter.ln1.weight": adapter.down.packed.view(R, -1),
            f"blocks.{block}.adapter.ln1.bias": adapter.down_bias,
            f"blocks.{block}.adapter.ln2.weight": adapter.up.packed.view(R, -1).T,
            f"blocks.{block}.adapter.ln2.bias": adapter.up_bias,
            f"blocks.{block}.visual_prompt_token": prompts.tokens.packed.view(1, R, -1),
        }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert {*missing} == {"visual_prompt_token", "visual_prompt_token_pos_embed"}  # the first block replaces them
    widths = dict(visual_prompt_dim=SUBNET.prompt, lora_dim=SUBNET.lora, adapter_dim=SUBNET.adapter)
    model.set_sample_config(widths | {"prefix_dim": (0,) * VIT["depth"]})
    return model(IMAGES)


MODELS = {
    "vpt-shallow": of_vpt,
    "vpt-deep": of_vpt,
    "ssf": of_ssf,
    "fact-tt": of_fact,
    "fact-tk": of_fact,
    "repadapter": of_repadapter,
    "noah-supernet": of_noah,
}
