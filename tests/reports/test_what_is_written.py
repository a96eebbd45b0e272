"""What trained or moved is what is written: adapters, checkpoints and peft's format, for models beyond the toy."""

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import timm
import torch
import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

import capaboost_text
import capaboost_vision
from capaboost_core import (
    Plan,
    Target,
    UserError,
    disable,
    inject,
    load_adapter,
    save_adapter,
    save_peft,
    unload,
)
from capaboost_core.account import account_of
from capaboost_core.adapter_files.base_model import DifferentBaseWarning
from capaboost_core.adapter_files.beside import AdapterBesideWarning
from capaboost_core.injection import UnhookedWarning, adapted_layers
from capaboost_core.task import Hooks
from tests.core.adapter_case import edit_tensors
from tests.core.toy_run import Toy, run, same, signalled
from tests.text.squad_case import tokenizer

SEEDED = torch.Generator().manual_seed(0)
X, TOKENS = torch.randn(24, 6, generator=SEEDED) * 3 + 2, torch.randint(0, 50, (2, 7), generator=SEEDED)
BERT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50)
GPT2 = dict(n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=50)


# Running statistics: of a frozen base they rest, of what trains they are written.


class Normed(nn.Module):
    """Statistics in the base, of a norm without parameters too, and in the head."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)
        self.plain = nn.BatchNorm1d(16, affine=False)
        self.head = nn.Sequential(nn.BatchNorm1d(16, affine=False), nn.Linear(16, 3))

    def forward(self, x):
        return self.head(self.plain(self.second(self.norm(self.first(x)).relu())))


def normed():
    torch.manual_seed(0)
    return Normed()


PLAN = Plan((Target("first"), Target("second")), ("head",))
METHODS = {"lora": dict(method="lora", r=2), "bitfit": dict(method="bitfit"), "full": dict(method="full")}


def adapted_normed(method="lora"):
    return inject(normed(), METHODS[method], PLAN if method == "lora" else Plan((), ("head",)))


def steps(model, inputs=X):
    """Three steps of training, as a loop of one's own takes them."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(inputs).square().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_model_with_statistics_comes_back(tmp_path, method):
    model = steps(adapted_normed(method))
    save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DifferentBaseWarning)
        loaded = load_adapter(normed(), tmp_path).eval()
    assert torch.equal(loaded(X), model(X))
    save_adapter(loaded, tmp_path / "again")
    assert (tmp_path / "again/adapter.safetensors").read_bytes() == (tmp_path / "adapter.safetensors").read_bytes()


def test_statistics_of_a_frozen_base_rest_and_those_of_the_head_move():
    model, base = adapted_normed(), normed().eval()
    steps(model)
    for path in ("norm", "plain"):
        assert torch.equal(model.get_submodule(path).running_mean, base.get_submodule(path).running_mean)
    assert model.head[0].running_mean.abs().min() > 0
    assert model.head[0].num_batches_tracked == 3
    model.train()
    assert (model.norm.training, model.head[0].training) == (False, True)
    plain = unload(model, merge=False).eval()
    assert torch.equal(plain.second(plain.norm(plain.first(X)).relu()), base.second(base.norm(base.first(X)).relu()))
    plain.train()
    assert (plain.norm.training, plain.plain.training) == (True, True)


def test_a_disabled_model_is_its_base_after_training():
    torch.manual_seed(0)
    sizes = dict(img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    model = timm.create_model("xcit_nano_12_p16_224", **sizes)
    base, images = copy.deepcopy(model).eval(), torch.randn(4, 3, 32, 32, generator=SEEDED)
    steps(capaboost_vision.inject(model, dict(r=2)), images)
    with disable(model), torch.no_grad():
        assert torch.equal(model.forward_features(images), base.forward_features(images))


def test_a_norm_unfrozen_after_injection_moves_and_is_written(tmp_path):
    model = adapted_normed()
    model.norm.requires_grad_(True)
    steps(model)
    assert model.norm.num_batches_tracked == 3
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(normed(), tmp_path).eval()(X), model(X))


def test_statistics_that_something_else_moved_are_written(tmp_path):
    """SyncBatchNorm is a new module in the place of the one that rests."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(adapted_normed())
    model.norm.running_mean += 1
    save_adapter(model.eval(), tmp_path)
    loaded = load_adapter(normed(), tmp_path).eval()
    assert torch.equal(loaded.norm.running_mean, model.norm.running_mean)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_rests_too(copied):
    model = copied(adapted_normed())
    assert model.train().norm.training is False
    assert model.norm.train.module is model.norm


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_with_its_statistics(tmp_path, method):
    expected, _ = run(tmp_path / "whole", network=adapted_normed(method))
    with pytest.raises(BaseException, match="SIGTERM"):
        run(tmp_path / "run", task=signalled(7), network=adapted_normed(method))
    resumed, _ = run(tmp_path / "run", network=adapted_normed(method), resume=True)
    assert same(resumed, expected)
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffer, resumed.get_buffer(name)), name


class Falling(Toy):
    """A task whose first epoch is the best."""

    def evaluate(self, model):
        super().evaluate(model)
        return {"score": -float(self.evaluations)}


def test_the_selected_epoch_has_its_statistics(tmp_path):
    network, _ = run(tmp_path, task=Falling, network=adapted_normed(), select_by="score")
    assert network.head[0].num_batches_tracked == 5  # of the first epoch, and not of all 20 steps


# save_peft: what trained beside the factors is written, or refused by name.


def bert(cls=BertForSequenceClassification):
    torch.manual_seed(0)
    return cls(BertConfig(num_labels=3, **BERT)).eval()


def vit():
    torch.manual_seed(0)
    sizes = dict(img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**GPT2)).eval()


def moved(model):
    """Every trainable parameter, and what must train beside it, with other values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


WRAPPED = {
    "compile": lambda m: torch.compile(m, backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "timm's average": timm.utils.ModelEmaV3,
    "compiled DataParallel": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
}


def compiled_head(model):
    model.classifier = torch.compile(model.classifier, backend="eager")
    return model


def compiled_in_place(model):
    model.classifier.compile(backend="eager")
    return model


@pytest.mark.parametrize("case", [*WRAPPED, "compiled head", "head compiled in place"])
def test_a_wrapped_model_is_exported_as_the_bare_one(tmp_path, case):
    model = moved(capaboost_text.inject(bert(), dict(r=2)))
    save_peft(model, tmp_path / "bare")
    parts = {"compiled head": compiled_head, "head compiled in place": compiled_in_place}
    save_peft((WRAPPED | parts)[case](model), tmp_path / "wrapped")
    for path in (tmp_path / "bare").iterdir():
        assert path.read_bytes() == (tmp_path / "wrapped" / path.name).read_bytes(), path.name


BESIDE = {  # what trains beside the plan's head, in which model
    "embeddings": (bert, ["bert.embeddings.word_embeddings"]),
    "norms": (bert, [f"bert.encoder.layer.{i}.output.LayerNorm" for i in range(2)]),
    "pooler": (bert, ["bert.pooler"]),
    "bias of a layer": (bert, ["bert.encoder.layer.1.intermediate.dense.bias"]),
    "bias of an adapted layer": (bert, ["bert.encoder.layer.0.attention.self.query.bias"]),
    "tied embeddings": (gpt2, ["transformer.wte"]),
    "position embeddings": (gpt2, ["transformer.wpe"]),
    "final norm": (gpt2, ["transformer.ln_f"]),
    "decoder bias": (lambda: bert(BertForMaskedLM), ["cls.predictions.decoder"]),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_trains_beside_the_head_is_exported(tmp_path, case):
    peft = pytest.importorskip("peft")
    make, names = BESIDE[case]
    model = capaboost_text.inject(make(), dict(r=2))
    for name in names:
        owner = model.get_submodule(name) if name in dict(model.named_modules()) else model.get_parameter(name)
        owner.requires_grad_(True)
    save_peft(moved(model), tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    assert (logits(model) - logits(make())).abs().max() > 0.1
    assert (logits(loaded) - logits(model)).abs().max() < 1e-5 * logits(model).abs().max().clamp(min=1)


REFUSED = {
    "a weight below a factor": (bert, "bert.encoder.layer.0.attention.self.query.weight"),
    "a parameter of the model itself": (vit, "cls_token"),
    "another one": (vit, "pos_embed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_has_no_place_for_is_refused_by_name(tmp_path, case):
    make, name = REFUSED[case]
    model = (capaboost_vision if make is vit else capaboost_text).inject(make(), dict(r=2))
    model.get_parameter(name).requires_grad_(True)
    with pytest.raises(UserError, match=f"{name}.*save_adapter"):
        save_peft(moved(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_with_statistics_is_exported(tmp_path):
    peft = pytest.importorskip("peft")
    model = steps(adapted_normed())
    save_peft(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(normed(), tmp_path).eval()
    assert (loaded(X) - model(X)).abs().max() < 1e-5


def test_a_diverged_model_is_not_exported(tmp_path):
    model = moved(capaboost_text.inject(bert(), dict(r=2)))
    save_peft(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(UserError, match=r"classifier.bias holds values that are not finite"):
        save_peft(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Other doors and settings.


ELSEWHERE = """
import sys, torch, capaboost_text
from transformers import Trainer, TrainingArguments, BertConfig, BertModel
from capaboost_core import load_adapter, save_adapter
torch.manual_seed(0)
model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24))
load_adapter(model, sys.argv[1])
save_adapter(model, sys.argv[2])
"""


def test_an_adapter_of_a_class_of_transformers_loads_in_a_program_that_injects_nothing(tmp_path):
    """`import capaboost_text` imports no transformers; its layers must be known all the same."""
    torch.manual_seed(0)
    sizes = BERT | dict(num_hidden_layers=1, vocab_size=30522)
    save_adapter(moved(capaboost_text.inject(BertModel(BertConfig(**sizes)), "prefix")), tmp_path / "a")
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a/adapter.safetensors").read_bytes() == (tmp_path / "b/adapter.safetensors").read_bytes()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_changes_no_file(tmp_path, device):
    model = moved(capaboost_text.inject(bert(), dict(r=2)))
    save_adapter(model, tmp_path / "plain")
    save_peft(model, tmp_path / "peft")
    torch.set_default_device(device)
    try:
        save_adapter(model, tmp_path / "under")
        save_peft(model, tmp_path / "peft-under")
    finally:
        torch.set_default_device(None)
    for one, other in (("plain", "under"), ("peft", "peft-under")):
        for path in (tmp_path / one).iterdir():
            assert path.read_bytes() == (tmp_path / other / path.name).read_bytes()


TIED = {"gpt2": gpt2, "bert": bert}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("added", [1, 2, 40])
@pytest.mark.parametrize("kind", TIED)
def test_added_tokens_of_other_values_are_said(tmp_path, kind, added, dtype):
    """Rows that `resize_token_embeddings` draws anew; of 30,000 and more the sampled entries met none."""

    def resized(seed):
        model = TIED[kind]()
        torch.manual_seed(seed)
        model.resize_token_embeddings(3000, mean_resizing=False)
        model.resize_token_embeddings(3000 + added, mean_resizing=False)
        return model.to(dtype)

    base = resized(1)
    save_adapter(capaboost_text.inject(copy.deepcopy(base), dict(r=2)), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DifferentBaseWarning)
        load_adapter(copy.deepcopy(base), tmp_path)
    other = copy.deepcopy(base)
    with torch.no_grad():
        rows = other.get_input_embeddings().weight[-added:]
        rows.normal_(std=0.02, generator=torch.Generator().manual_seed(5))
    with pytest.warns(DifferentBaseWarning, match="differ"):
        load_adapter(other, tmp_path)


def test_the_account_names_what_a_file_holds():
    model = adapted_normed()
    account = account_of(model)
    assert {"head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked"} == account.further.keys()
    assert {"head.1.weight", "head.1.bias"} == {name for name in account.planned if "lora" not in name}


# What no tensor says: how masks were drawn, where entries stand, what a method does around a step.

DRAWS = {
    "seed": (dict(r=2, num_tied=1, density=0.5), dict(seed=1)),
    "seed of one mask": (dict(r=2, mask="same"), dict(seed=1)),
    "seed of groups": (dict(r=4, num_tied=1, mask="nm", n=2, m=4), dict(seed=1)),
    "kind of mask": (dict(r=4, num_tied=1, density=0.5), dict(mask="nm", n=2, m=4)),
    "seed of a bottleneck": (dict(method="padapter", r=2, num_tied=1, density=0.5), dict(seed=1)),
}


@pytest.mark.parametrize("case", DRAWS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_of_other_masks_is_refused(tmp_path, case, wrapped):
    settings, changes = DRAWS[case]
    wrap = nn.DataParallel if wrapped else lambda model: model
    there = wrap(capaboost_text.inject(bert(), settings))
    torch.save(there.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    same, other = (wrap(capaboost_text.inject(bert(), settings | more)) for more in ({}, changes))
    same.load_state_dict(state)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert {name: value.shape for name, value in before.items()} == {k: v.shape for k, v in state.items()}
    with pytest.raises(UserError, match="other masks"):
        other.load_state_dict(moved(there).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def allocated():
    return capaboost_text.inject(bert(), "capaboost-lora-allocated")


def exchanged(model):
    """As `after_step` moves ranks: the entries of two layers change places."""
    one, other = (layer.lora_A.slots[:100] for layer in adapted_layers(model)[:2])
    with torch.no_grad():
        before = one.clone()
        one.copy_(other)
        other.copy_(before)
    return model


@pytest.mark.parametrize("write", [save_adapter, save_peft])
def test_places_that_were_averaged_are_not_saved(tmp_path, write):
    model = allocated()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    write(average, tmp_path / "good")
    average.update_parameters(exchanged(model))
    write(model, tmp_path / "moved")
    with pytest.raises(UserError, match="do not have one position each"):
        write(average, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_places_that_were_edited_are_not_loaded(tmp_path):
    save_adapter(allocated(), tmp_path)
    edit_tensors(tmp_path, lambda tensors: [v.fill_(10**6) for k, v in tensors.items() if k.endswith("slots")])
    model = bert()
    with pytest.raises(UserError, match="do not have one position each"):
        load_adapter(model, tmp_path)
    assert not hasattr(model, "capaboost")


HOOKED_METHODS = ["lora-allocated", "adalora", "adamix", "capaboost-adamix-lora", "propetl-lora"]


def trainer_of(model, folder):
    rows = [{"input_ids": row, "labels": torch.tensor(1)} for row in TOKENS]
    settings = dict(max_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True)
    return transformers.Trainer(model, transformers.TrainingArguments(folder, **settings), train_dataset=rows)


@pytest.mark.parametrize("method", HOOKED_METHODS)
def test_a_loop_that_does_not_call_a_methods_hooks_is_told_once(tmp_path, method):
    with pytest.warns(UnhookedWarning, match="Hooks") as told:
        trainer_of(capaboost_text.inject(bert(), method), tmp_path).train()
    assert sum(warning.category is UnhookedWarning for warning in told) == 1


@pytest.mark.parametrize("method", ["capaboost-lora", "padapter", "bitfit"])
def test_a_method_without_hooks_trains_in_any_loop_without_a_word(tmp_path, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnhookedWarning)
        trainer_of(capaboost_text.inject(bert(), method), tmp_path).train()


def test_a_loop_that_made_hooks_is_not_told():
    model = allocated()
    Hooks(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnhookedWarning)
        model.train()(TOKENS)


@pytest.mark.parametrize("method", ["capaboost-lora", "padapter", "bitfit"])
def test_what_the_trainer_saves_holds_the_adapter(tmp_path, method):
    base = bert()
    trainer = trainer_of(capaboost_text.inject(copy.deepcopy(base), method), tmp_path)
    trainer.train()
    with pytest.warns(AdapterBesideWarning, match="to be loaded into them by load_adapter"):
        trainer.save_model(tmp_path / "saved")
    loaded = load_adapter(base, tmp_path / "saved/capaboost_adapter").eval()
    assert torch.equal(logits(loaded), logits(trainer.model.eval()))


def test_an_unloaded_model_is_saved_as_any_other(tmp_path):
    model = unload(capaboost_text.inject(bert(), dict(r=2)))
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    copied = pickle.loads(pickle.dumps(capaboost_text.inject(bert(), dict(r=2))))
    assert copied.save_pretrained.model is copied


def test_a_sentence_transformer_saves_the_adapter_beside_its_files(tmp_path):
    """As the Trainer does: its own files are the base, and the adapter is loaded into them, or merged before."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    BertModel(BertConfig(**BERT | dict(vocab_size=300))).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    encoder, texts = sentence_transformers.SentenceTransformer(str(tmp_path / "base"), device="cpu"), ["a b", "c"]
    base = encoder.encode(texts)
    moved(capaboost_text.inject(encoder[0].auto_model, "capaboost-lora"))
    adapted = encoder.encode(texts)
    with pytest.warns(AdapterBesideWarning, match="or call unload"):
        encoder.save(str(tmp_path / "saved"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert abs(adapted - base).max() > 1e-3
    assert abs(again.encode(texts) - base).max() < 1e-6
    load_adapter(again[0].auto_model, tmp_path / "saved/capaboost_adapter")
    assert abs(again.encode(texts) - adapted).max() < 1e-6
    unload(encoder[0].auto_model)
    encoder.save(str(tmp_path / "merged"))
    merged = sentence_transformers.SentenceTransformer(str(tmp_path / "merged"), device="cpu")
    assert abs(merged.encode(texts) - adapted).max() < 1e-5
