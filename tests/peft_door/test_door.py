"""CapaBoost behind `get_peft_model` is the core's in masks, values, gradients and files, and has peft's features."""

import copy
import filecmp
import json
from collections import Counter
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import capaboost_core as core
import capaboost_vision
from capaboost_core import Plan, Target, UserError
from capaboost_core.injection import adapted_layers
from capaboost_core.injection import mask_checksum as checksum_of_core
from capaboost_text import inject as inject_text
from tests.peft_door.models import DECODERS, IMAGES, TOKENS, bert, decoder, logits, trained, vit

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")

from peft import LoraConfig, PeftModel, TaskType, get_peft_model, inject_adapter_in_model  # noqa: E402
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap  # noqa: E402

from capaboost_peft import CapaBoostConfig, from_core, save_lora, to_core  # noqa: E402
from capaboost_peft.tuner import mask_checksum  # noqa: E402

BASES = {"vit": (vit, IMAGES), "bert": (bert, TOKENS), "gpt2": (lambda: decoder("gpt2"), TOKENS)}
TARGETS = {
    "vit": dict(target_modules=["attn.qkv"], slices={"attn.qkv": "qv"}, modules_to_save=["head"]),
    "bert": dict(target_modules=["query", "value"], modules_to_save=["classifier"]),
    "gpt2": dict(target_modules=["c_attn"], slices={"c_attn": "qv"}, fan_in_fan_out=True),
}
INJECT = {"vit": capaboost_vision.inject, "bert": inject_text, "gpt2": inject_text}
TYINGS = {
    "d2": {},
    "d4": dict(num_tied=4, density=0.25, seed=7),
    "density 0.3": dict(density=0.3, scaling="alpha-r"),
    "2:4": dict(mask="nm", n=2, m=4),
    "same": dict(mask="same"),
    "plain": dict(num_tied=1, density=1.0),
}
every_base = pytest.mark.parametrize("kind", BASES)
every_tying = pytest.mark.parametrize("tying", TYINGS.values(), ids=TYINGS)


def adapted(kind: str, name: str = "default", **settings) -> PeftModel:
    return get_peft_model(
        BASES[kind][0](), CapaBoostConfig(**TARGETS[kind] | dict(r=4, lora_alpha=6) | settings), name
    )


def core_of(kind: str, **settings) -> nn.Module:
    return INJECT[kind](BASES[kind][0](), dict(method="lora", r=4, alpha=6.0) | settings)


def size_of(folder) -> int:
    return (folder / "adapter_model.safetensors").stat().st_size


@every_base
@every_tying
def test_masks_values_and_gradients_are_the_cores(kind, tying):
    ours, theirs, inputs = trained(adapted(kind, **tying)).train(), core_of(kind, **tying).train(), BASES[kind][1]
    assert mask_checksum(ours, "default") == checksum_of_core(adapted_layers(theirs))
    here = {name.replace(".default", ""): p for name, p in ours.named_parameters() if "lora_" in name}
    there = {name: p for name, p in theirs.named_parameters() if "lora_" in name}
    assert {f"base_model.model.{name}" for name in there} == set(here)
    with torch.no_grad():
        for name, parameter in there.items():
            parameter.copy_(here[f"base_model.model.{name}"])
        if TARGETS[kind].get("modules_to_save"):
            head = "head" if kind == "vit" else "classifier"
            theirs.get_submodule(head).load_state_dict(
                ours.get_submodule(f"base_model.model.{head}.modules_to_save.default").state_dict()
            )
    torch.manual_seed(5)
    found = logits(ours, inputs)
    torch.manual_seed(5)
    expected = logits(theirs, inputs)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert all(torch.equal(p.grad, here[f"base_model.model.{name}"].grad) for name, p in there.items())


@every_base
@every_tying
def test_the_fused_step_is_peftes_own(kind, tying, monkeypatch):
    """peft's forward reads the same factors; it sums in another order."""
    model, inputs = trained(adapted(kind, **tying)).double(), BASES[kind][1]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    found = logits(model, inputs)
    monkeypatch.setattr("capaboost_peft.tuner.Linear._single", lambda layer, x: None)
    assert (logits(model, inputs) - found).abs().max() < 1e-12 * found.abs().max()
    assert (logits(model.merge_and_unload(), inputs) - found).abs().max() < 1e-12 * found.abs().max()


@pytest.mark.parametrize("kind", ["vit", "bert"])
@every_tying
def test_files_go_to_the_core_and_back_to_the_bit(kind, tying, tmp_path):
    inputs, model = BASES[kind][1], trained(adapted(kind, **tying))
    model.save_pretrained(tmp_path / "peft")
    to_core(model, tmp_path / "core")
    loaded = core.load_adapter(BASES[kind][0](), tmp_path / "core")
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    core.save_adapter(loaded, tmp_path / "again")
    for name in ("adapter.safetensors", "capaboost_config.json"):
        assert filecmp.cmp(tmp_path / "core" / name, tmp_path / "again" / name, shallow=False)
    back = from_core(BASES[kind][0](), tmp_path / "again")
    assert torch.equal(logits(back.eval(), inputs), logits(model, inputs))
    back.save_pretrained(tmp_path / "back")
    names = ("peft/adapter_model.safetensors", "back/adapter_model.safetensors")
    assert filecmp.cmp(*(tmp_path / name for name in names), shallow=False)


@every_base
def test_the_cores_own_files_become_peft_models(kind, tmp_path):
    model = trained(core_of(kind, dropout=0.1))
    core.save_adapter(model, tmp_path)
    assert torch.equal(
        logits(from_core(BASES[kind][0](), tmp_path).eval(), BASES[kind][1]), logits(model, BASES[kind][1])
    )


def test_a_file_has_three_quarters_of_loras_entries(tmp_path):
    for name, config in (("ours", CapaBoostConfig), ("lora", LoraConfig)):
        model = get_peft_model(vit(embed_dim=192, num_heads=3), config(target_modules=["qkv", "fc1"], r=16))
        model.save_pretrained(tmp_path / name)
    assert size_of(tmp_path / "ours") / size_of(tmp_path / "lora") == pytest.approx(0.75, abs=0.01)


@every_base
@every_tying
def test_as_a_plain_lora_it_computes_the_same(kind, tying, tmp_path):
    inputs, model = BASES[kind][1], trained(adapted(kind, use_rslora=True, **tying)).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    save_lora(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    lora = PeftModel.from_pretrained(BASES[kind][0]().double(), tmp_path).eval()
    found = logits(lora, inputs)
    assert type(lora.peft_config["default"]) is LoraConfig
    assert (found - logits(model, inputs)).abs().max() <= 1e-12 * found.abs().max()


def test_several_ranks_become_a_plain_lora(tmp_path):
    patterns = dict(rank_pattern={"fc1": 2}, alpha_pattern={"blocks.1.mlp.fc1": 3}, slices={"qkv": [[0, 16]]})
    model = trained(adapted("vit", target_modules=["qkv", "fc1", "fc2"], **patterns))
    save_lora(model, tmp_path)
    lora = PeftModel.from_pretrained(vit(), tmp_path).eval()
    assert torch.allclose(lora(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="rank_pattern: the core's files have none"):
        to_core(model, tmp_path / "core")
    assert not (tmp_path / "core").exists()


def test_a_plain_lora_is_written_with_its_settings_or_not_at_all(tmp_path):
    (tmp_path / "adapter_config.json").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        save_lora(adapted("vit"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


def delta(layer: nn.Module) -> torch.Tensor:
    weight = layer.get_delta_weight("default")
    return weight.T if layer.fan_in_fan_out else weight


@pytest.mark.parametrize(
    ("model", "layer", "rows"),
    [
        (vit, "blocks.1.attn.qkv", [(0, 16), (32, 48)]),
        (lambda: decoder("phi3"), "model.layers.0.self_attn.qkv_proj", [(0, 16), (24, 32)]),  # v is one of 2 groups
        (lambda: decoder("gpt2"), "transformer.h.1.attn.c_attn", [(0, 16), (32, 48)]),
    ],
    ids=["timm", "phi3", "gpt2"],
)
@pytest.mark.parametrize("letters", ["qv", "ranges"])
def test_q_and_v_alone_of_a_fused_layer(model, layer, rows, letters):
    name = layer.rpartition(".")[2]
    slices = {name: "qv" if letters == "qv" else [list(pair) for pair in rows]}
    door = trained(get_peft_model(model(), CapaBoostConfig(target_modules=[name], slices=slices, r=4)))
    weight = delta(door.base_model.model.get_submodule(layer))
    touched = torch.zeros(len(weight), dtype=torch.bool)
    for start, stop in rows:
        touched[start:stop] = True
        assert torch.linalg.matrix_rank(weight[start:stop]) == 8  # d r, each slice with factors of its own
    assert (weight[touched] != 0).float().mean() > 0.9
    assert not weight[~touched].any()


SETTINGS = {
    "density": (dict(density=0.0), "density is 0.0"),
    "mask": (dict(mask="nm"), "mask: nm needs n and m"),
    "seed of nothing": (dict(mask="dropout", seed=3), "seed is 3; it means nothing"),
    "DoRA": (dict(use_dora=True), "use_dora: not with CapaBoost"),
    "PiSSA": (dict(init_lora_weights="pissa"), "choose True, False or 'gaussian'"),
    "bias of B": (dict(lora_bias=True), "lora_bias: not with CapaBoost"),
    "letters": (dict(slices={"qkv": "qz"}), 'letters of "qkv"'),
    "falling rows": (dict(slices={"qkv": [[8, 4]]}), "in rising order"),
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_is_used_or_refused(settings, message):
    with pytest.raises(UserError, match=message):
        CapaBoostConfig(target_modules=["qkv"], **settings)


class Nets(nn.Module):
    """One layer of each kind that cannot carry a shared weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.query_key_value = nn.Embedding(4, 4), nn.Linear(4, 12)
        self.grouped, self.attention = nn.Conv2d(4, 4, 1, groups=2), nn.MultiheadAttention(4, 2)


REFUSED = {
    "embedding": (dict(target_modules=["embedding"]), "is an embedding"),
    "grouped convolution": (dict(target_modules=["grouped"]), "is a grouped convolution"),
    "projection of an attention": (dict(target_modules=["out_proj"]), "target the attention itself"),
    "no such layer": (dict(target_modules=["query_key_value"], slices={"qkv": "q"}), "the model has no layer 'qkv'"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_a_target_that_cannot_carry_it_is_refused_and_the_model_unchanged(settings, message):
    model = Nets()
    before = [type(module) for module in model.modules()]
    with pytest.raises(UserError, match=message):
        get_peft_model(model, CapaBoostConfig(**settings))
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("slices", [{"query_key_value": "q"}, {"query_key_value": [[8, 16]]}])
def test_rows_that_a_layer_has_not_are_refused(slices):
    with pytest.raises(UserError, match="slices: "):
        get_peft_model(Nets(), CapaBoostConfig(target_modules=["query_key_value"], slices=slices))


def test_a_model_that_reads_the_weight_past_the_layer_is_switched():
    sizes = dict(img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    model = timm.create_model("eva02_tiny_patch14_224", **sizes, qkv_fused=True).eval()
    before = model(IMAGES)
    door = get_peft_model(model, CapaBoostConfig(target_modules=["qkv"], slices={"qkv": "qv"}))
    assert (door(IMAGES) - before).abs().max() < 1e-4 * before.abs().max()
    assert (trained(door)(IMAGES) - before).abs().max() > 1e-2 * before.abs().max()


def test_the_fast_path_of_torchs_encoder_does_not_skip_the_adapter():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        before = encoder(x)
        door = trained(get_peft_model(encoder, CapaBoostConfig(target_modules=["linear1"])))
        assert (door(x) - before).abs().max() > 1e-3


def test_masks_of_other_paths_are_refused(tmp_path):
    """2:4 masks have as many entries under any path: only the checksum tells."""
    plain = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}
    config = dict(mask="nm", n=2, m=4, r=4)
    model = get_peft_model(nn.ModuleDict({"a": plain["a"]}), CapaBoostConfig(target_modules=["a"], **config))
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text()) | {"target_modules": ["b"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="differ from those that it was trained with"):
        PeftModel.from_pretrained(nn.ModuleDict({"b": plain["b"]}), tmp_path)


@pytest.mark.parametrize("low_memory", [False, True])
def test_save_and_load_of_several_adapters(tmp_path, low_memory):
    model = adapted("bert")
    model.add_adapter("other", CapaBoostConfig(target_modules=["key"], r=2, num_tied=3, seed=5))
    trained(model, part="lora_")
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = logits(model, TOKENS)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(bert(), tmp_path, low_cpu_mem_usage=low_memory).eval()
    loaded.load_adapter(tmp_path / "other", "other", low_cpu_mem_usage=low_memory)
    for name, values in expected.items():
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded, TOKENS), values)
    with loaded.disable_adapter():
        plain = logits(loaded, TOKENS)
    loaded.delete_adapter("other")
    assert not [name for name, _ in loaded.named_parameters() if "other" in name]
    assert not torch.equal(plain, expected["default"])
    assert torch.equal(logits(copy.deepcopy(loaded), TOKENS), logits(loaded, TOKENS))


def test_injection_without_a_peft_model_is_the_same():
    model = trained(adapted("bert", modules_to_save=None))
    bare = inject_adapter_in_model(model.peft_config["default"], bert())
    bare.load_state_dict({name.removeprefix("base_model.model."): v for name, v in model.state_dict().items()})
    assert torch.equal(logits(bare, TOKENS), logits(model, TOKENS))


def test_eight_adapters_in_one_batch_equal_eight_forward_passes():
    names = [f"adapter{i}" for i in range(8)]
    model = adapted("vit", names[0], modules_to_save=None)
    for i, name in enumerate(names[1:], start=1):
        tying = [{}, dict(num_tied=4, density=0.25), dict(r=2), dict(mask="nm", n=2, m=4)][i % 4]
        more = dict(r=4, seed=i, slices={"qkv": ["q", "qv", "kv"][i % 3]}) | tying
        model.add_adapter(name, CapaBoostConfig(target_modules=["qkv"], **more))
    trained(model, part="lora_").double()
    together = model(IMAGES.double(), adapter_names=names)
    for i, name in enumerate(names):
        model.set_adapter(name)
        alone = model(IMAGES[i : i + 1].double())
        assert (together[i] - alone[0]).abs().max() < 1e-12
    assert len({tuple(row.tolist()) for row in together}) == 8


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_trains_generates_merges_saves_and_loads(family, tmp_path):
    targets = dict(target_modules="all-linear")
    if family == "mixtral":
        targets = dict(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    kind = TaskType.SEQ_2_SEQ_LM if family in ("t5", "bart") else TaskType.CAUSAL_LM
    model = get_peft_model(decoder(family), CapaBoostConfig(task_type=kind, r=4, **targets)).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    model.save_pretrained(tmp_path)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"packed"}
    expected, words = logits(model, TOKENS), model.generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False)
    loaded = PeftModel.from_pretrained(decoder(family), tmp_path)
    assert torch.equal(logits(loaded, TOKENS), expected)
    merged = loaded.merge_and_unload()
    assert torch.allclose(logits(merged, TOKENS), expected, rtol=1e-4, atol=1e-4)
    uncached = model.generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(words, uncached)


def test_a_core_adapter_of_another_method_is_refused(tmp_path):
    model = core.inject(nn.ModuleDict({"a": nn.Linear(4, 4)}), {"method": "lora-allocated", "targets": ["a"]})
    core.save_adapter(model, tmp_path)
    with pytest.raises(UserError, match="method lora-allocated"):
        from_core(nn.ModuleDict({"a": nn.Linear(4, 4)}), tmp_path)
    with pytest.raises(UserError, match="no CapaBoost adapter"):
        to_core(get_peft_model(vit(), LoraConfig(target_modules=["qkv"])), tmp_path)


def test_a_weighted_sum_is_refused():
    with pytest.raises(UserError, match="no shared weight"):
        adapted("vit").add_weighted_adapter(["default"], [1.0], "sum")


def test_a_plan_is_read_from_the_layers(tmp_path):
    to_core(adapted("vit"), tmp_path)
    plan = Plan.from_dict(json.loads((tmp_path / "capaboost_config.json").read_text())["plan"])
    slices = ((0, 16), (32, 48))
    assert plan == Plan(tuple(Target(f"blocks.{i}.attn.qkv", slices) for i in range(2)), ("head",))


OTHERS = [dict(r=4), dict(r=2, num_tied=3, seed=1), dict(r=4, mask="nm", n=2, m=4), dict(r=1)]
SERVED = {  # what a compiled model is prepared with, and then serves
    "plain LoRAs": ("lora", OTHERS),
    "packed files": ("packed", OTHERS),
    "one rank": ("packed", [dict(r=4), dict(r=2, num_tied=4, density=0.25), dict(r=4, seed=2), dict(r=8, num_tied=1)]),
    "scales": ("packed", [dict(r=4), dict(r=1, use_rslora=True), dict(r=1, rank_pattern={"query": 3}, lora_alpha=2)]),
    "slices": ("packed", [dict(r=4), dict(r=2, slices={"query": [[0, 4], [8, 9]]})]),
}


@pytest.mark.parametrize(("form", "tyings"), SERVED.values(), ids=SERVED)
def test_hot_swaps_of_other_d_r_and_masks_recompile_nothing(form, tyings, tmp_path):
    """In place, by stock peft's functions, padded to the largest s d r."""
    targets = dict(target_modules=["query", "value"])  # peft swaps no heads
    expected = []
    for i, tying in enumerate(tyings):
        model = trained(get_peft_model(bert(), CapaBoostConfig(**targets | tying)), seed=i, part="lora_")
        expected.append(logits(model, TOKENS))
        save_lora(model, tmp_path / str(i)) if form == "lora" else model.save_pretrained(tmp_path / str(i))
    served = PeftModel.from_pretrained(bert(), tmp_path / "0").eval()
    prepare_model_for_compiled_hotswap(served, target_rank=8)
    torch.compiler.reset()
    compiled = torch.compile(served, backend="eager")
    with torch.no_grad():
        assert torch.allclose(logits(compiled, TOKENS), expected[0], atol=1e-5)
        graphs = counters["stats"]["unique_graphs"]
        for i in (*range(1, len(tyings)), 0):
            hotswap_adapter(served, tmp_path / str(i), "default")
            assert torch.allclose(logits(compiled, TOKENS), expected[i], atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs > 0


def test_a_hot_swap_is_refused_before_the_model_changes(tmp_path):
    config = dict(target_modules=["qkv", "patch_embed.proj"])
    other = trained(get_peft_model(vit(), CapaBoostConfig(**config, r=4, mask="nm", n=2, m=4)))
    other.save_pretrained(tmp_path)
    model = trained(get_peft_model(vit(), CapaBoostConfig(**config, r=2)), seed=2)
    before, unprepared = model(IMAGES), copy.deepcopy(model)
    with pytest.raises(UserError, match=r"rank 4 .* target_rank=4"):
        prepare_model_for_compiled_hotswap(model, target_rank=2)
    assert torch.allclose(model(IMAGES), before, atol=1e-6)
    hotswap_adapter(unprepared, tmp_path, "default")  # peft lets plain factors grow
    assert torch.allclose(unprepared(IMAGES), other(IMAGES), atol=1e-5)
    prepare_model_for_compiled_hotswap(model, target_rank=4)
    with pytest.raises(UserError, match=r"rank 8 .* target_rank=8"):
        hotswap_adapter(model, tmp_path, "default")
    model = trained(get_peft_model(vit(), CapaBoostConfig(**config, r=2)), seed=2)
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    text = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(json.dumps(json.loads(text) | {"seed": 5}))
    with pytest.raises(UserError, match="the masks differ"):
        hotswap_adapter(model, tmp_path, "default")
    assert torch.allclose(model(IMAGES), before, atol=1e-5)
    (tmp_path / "adapter_config.json").write_text(text)
    hotswap_adapter(model, tmp_path, "default")
    assert torch.allclose(model(IMAGES), other(IMAGES), atol=1e-5)
    for save in (model.save_pretrained, partial(to_core, model), partial(save_lora, model)):
        with pytest.raises(UserError, match="no longer shared"):
            save(tmp_path / "saved")


class Operators(TorchDispatchMode):
    """How often each operator was dispatched."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **kwargs or {})


@every_base
def test_a_step_dispatches_what_the_cores_does(kind):
    """So it costs the same: the door adds no product, no copy and no sum."""
    counts = []
    for model in (adapted(kind, modules_to_save=None), core_of(kind)):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        with Operators() as operators:
            logits(model.train(), BASES[kind][1]).square().sum().backward()
        counts.append(operators.counts)
    assert counts[0] == counts[1]


def test_a_second_adapter_of_a_parameter_is_shared_too(tmp_path):
    config = dict(target_modules=[], target_parameters=["0.weight"])
    get_peft_model(nn.Sequential(nn.Linear(8, 8)), CapaBoostConfig(**config)).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(nn.Sequential(nn.Linear(8, 8)), tmp_path)
    model.load_adapter(tmp_path, "other")
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert names == {"packed"}
