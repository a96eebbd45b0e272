"""What trains is what is said, whatever the model's head; and what a folder holds is loaded, or refused by name."""

from functools import partial

import pytest
import timm
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    DistilBertConfig,
    FalconMambaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    ModernBertConfig,
    Trainer,
    TrainingArguments,
)

from capaboost_core import PRESETS, CapaBoostConfig, UserError, parameter_counts, weight_decay_groups
from capaboost_core import trainable_parameters as trainable
from capaboost_text import from_pretrained, inject
from tests.text.models import SIZE
from tests.text.tiny_encoder import save_encoder

BERT = BertConfig(**SIZE)
DISTILBERT = DistilBertConfig(vocab_size=99, dim=32, n_layers=2, n_heads=2, hidden_dim=48)
MODERNBERT = ModernBertConfig(**SIZE, global_attn_every_n_layers=1, pad_token_id=0)
LLAMA = LlamaConfig(**SIZE)
EXPLICIT = {"targets": ["q_proj", "v_proj"], "r": 4}
WITHOUT_HEAD = {
    "bert": (AutoModel, BERT, {"r": 4}),
    "distilbert": (AutoModel, DISTILBERT, {"r": 4}),
    "modernbert": (AutoModel, MODERNBERT, {"r": 4}),
    "bert prefix": (AutoModel, BERT, {"method": "prefix", "r": 4}),
    "bert adapter": (AutoModel, BERT, {"method": "padapter", "r": 4}),
    "bert words": (AutoModelForMaskedLM, BERT, {"r": 4}),
    "distilbert words": (AutoModelForMaskedLM, DISTILBERT, {"r": 4}),
    "llama": (AutoModel, LLAMA, EXPLICIT),
    "llama words": (AutoModelForCausalLM, LLAMA, EXPLICIT),
}


@pytest.mark.hard_case(9, 19)
@pytest.mark.parametrize(("auto", "config", "settings"), WITHOUT_HEAD.values(), ids=WITHOUT_HEAD)
def test_without_a_head_of_its_own_a_model_trains_the_additions_alone(auto, config, settings):
    model = auto.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    counts = parameter_counts(inject(model, settings))
    assert all(any(part in name for part in ("lora_", "adapter.", "prefix.")) for name in trainable(model))
    assert counts.trainable == sum(p.numel() for p in trainable(model).values()) > 0
    assert (counts.head, counts.total) == (0, total)
    assert 0 < counts.percent < 100


@pytest.mark.hard_case(19)
def test_the_head_of_a_classifier_trains_and_is_counted():
    model = AutoModelForSequenceClassification.from_config(LLAMA)
    counts = parameter_counts(inject(model, EXPLICIT))
    head = {name for name in trainable(model) if "lora_" not in name}
    assert head == {"score.weight"}
    assert counts.head == model.score.weight.numel()


@pytest.mark.hard_case(10)
@pytest.mark.parametrize("arguments", [{}, {"ignore_mismatched_sizes": True}], ids=["", "ignored"])
def test_other_sizes_within_the_encoder_are_refused_by_name(tmp_path, arguments):
    folder = save_encoder(tmp_path)
    with pytest.raises(UserError, match=r"position_embeddings.weight is \(64, 32\).*\(1024, 32\)") as caught:
        from_pretrained(folder, num_labels=2, max_position_embeddings=1024, **arguments)
    assert "ignore_mismatched_sizes" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.hard_case(10)
def test_a_head_of_another_size_is_refused_unless_a_fresh_one_is_asked_for(tmp_path):
    encoder = AutoModelForSequenceClassification.from_pretrained(save_encoder(tmp_path / "base"), num_labels=3)
    encoder.save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match=r"classifier.bias is \(3,\).*ignore_mismatched_sizes=True"):
        from_pretrained(tmp_path / "three", num_labels=2)
    model = from_pretrained(tmp_path / "three", num_labels=2, ignore_mismatched_sizes=True)
    assert model.classifier.out_features == 2
    assert torch.equal(from_pretrained(tmp_path / "three").classifier.weight, encoder.classifier.weight)


@pytest.mark.hard_case(7)
@pytest.mark.parametrize("method", ["capaboost-lora", "capaboost-padapter", "capaboost-prefix"])
def test_an_adapted_model_that_save_pretrained_wrote_is_refused(tmp_path, method):
    adapted = from_pretrained(save_encoder(tmp_path / "base"), capaboost=method)
    adapted.save_pretrained(tmp_path / "adapted")
    with pytest.raises(UserError, match=r"packed; save adapted models with save_adapter"):
        from_pretrained(tmp_path / "adapted", capaboost=method)


@pytest.mark.hard_case(35)
def test_layers_of_gpt2_are_adapted_or_refused_by_their_class():
    make = partial(AutoModelForCausalLM.from_config, GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    model = make()
    with pytest.raises(UserError, match=r"target transformer\.h\.0\.attn\.c_attn is a Conv1D, not an nn\.Linear"):
        inject(model, {"method": "padapter", "targets": ["c_attn"]})
    assert all(p.requires_grad for p in model.parameters())
    for targets in (["c_attn"], "attention-qv"):
        assert parameter_counts(inject(make(), {"targets": targets})).trainable > 0


@pytest.mark.hard_case(20)
def test_trainer_decays_packed_weights_and_no_bias(tmp_path):
    for settings in ({"r": 4}, {"method": "hadapter", "r": 4}):
        model = inject(AutoModelForSequenceClassification.from_config(BERT), settings)
        trainer = Trainer(model, TrainingArguments(tmp_path, report_to=[], use_cpu=True))
        decayed = set(trainer.get_decay_parameter_names(model)) & trainable(model).keys()
        assert decayed == {name for name, p in trainable(model).items() if p.ndim > 1}


@pytest.mark.hard_case(20)
@pytest.mark.parametrize("method", ["lora", "padapter", "hadapter", "prefix"])
def test_trainer_with_the_groups_given_decays_every_matrix_and_no_bias(tmp_path, method):
    """Of itself it would leave out what stands below a norm: a PAdapter's matrices in BERT."""
    model = inject(AutoModelForSequenceClassification.from_config(BERT), {"method": method, "r": 4})
    optimizer = torch.optim.AdamW(weight_decay_groups(trainable(model).values(), 0.01), lr=1e-3)
    trainer = Trainer(model, TrainingArguments(tmp_path, report_to=[], use_cpu=True), optimizers=(optimizer, None))
    names = {id(p): name for name, p in trainable(model).items()}
    decayed = {
        names[id(p)] for group in trainer.optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    assert decayed == {name for name, p in trainable(model).items() if p.ndim > 1}
    assert decayed >= {name for name in trainable(model) if name.endswith(".packed")}


class Wrapper(torch.nn.Sequential):
    """As sentence-transformers holds an encoder."""


def in_sentence_transformer():
    part = torch.nn.Module()
    part.auto_model = AutoModel.from_config(BERT)
    return Wrapper(part, torch.nn.Linear(32, 32))


NO_MODELS = {
    "a module of one's own": (
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 4)),
        "give a model that transformers made",
    ),
    "an encoder's part": (lambda: AutoModel.from_config(BERT).encoder, "BertEncoder is no model of transformers"),
    "a sentence transformer": (in_sentence_transformer, r"the transformers model in it, model\[0\].auto_model, or"),
    "a timm model": (lambda: timm.create_model("vit_tiny_patch16_224", depth=1), "capaboost_vision.inject for a timm"),
    "a parallel one": (lambda: torch.nn.DataParallel(AutoModel.from_config(BERT)), "the model is in a DataParallel"),
    "a compiled one": (lambda: torch.compile(AutoModel.from_config(BERT)), "the model is in a OptimizedModule"),
}


@pytest.mark.parametrize(("make", "message"), NO_MODELS.values(), ids=NO_MODELS)
def test_what_is_no_model_of_transformers_is_refused_in_a_line(make, message):
    model = make()
    with pytest.raises(UserError, match=message) as caught:
        inject(model, "lora")
    assert "\n" not in str(caught.value)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_encoder_in_another_module_is_adapted_by_itself():
    model = in_sentence_transformer()
    inject(model[0].auto_model, "lora")
    assert sum(parameter.requires_grad for parameter in model[0].parameters()) == 2 * 2 * BERT.num_hidden_layers


WORDS = {"vocab_size": 99, "hidden_size": 32}
PAST = {  # what reads a weight past its layer, as it comes without the kernels that it is made for
    "mamba": (MambaConfig(**WORDS, num_hidden_layers=2, state_size=4), ["dt_proj"]),
    "falcon mamba": (FalconMambaConfig(**WORDS, num_hidden_layers=2, state_size=4), ["in_proj", "dt_proj"]),
    "bloom": (BloomConfig(**WORDS, n_layer=2, n_head=2, slow_but_exact=True, pretraining_tp=2), ["dense"]),
}


@pytest.mark.parametrize(("config", "targets"), PAST.values(), ids=PAST)
@pytest.mark.parametrize("preset", ["lora", "capaboost-lora"])
def test_targets_that_compute_nothing_are_refused_where_no_row_knows_them(config, targets, preset):
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=f"bypasses 2 adapted layers, such as .*{targets[-1]}, whose additions"):
        inject(model, CapaBoostConfig(**dict(PRESETS[preset].to_dict(), targets=targets, r=1)))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model, "capaboost")
    assert not model._forward_hooks
    assert not any("Capa" in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize(
    ("config", "targets"),
    [
        (MambaConfig(**WORDS, num_hidden_layers=1, state_size=4), ["in_proj", "x_proj"]),
        (BloomConfig(**WORDS, n_layer=1, n_head=2), ["dense", "query_key_value"]),
        (GPTNeoXConfig(**WORDS, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32), ["dense"]),
    ],
)
def test_targets_that_compute_are_taken_and_the_model_is_left_as_it_was(config, targets):
    model = AutoModelForCausalLM.from_config(config).train()
    inject(model, CapaBoostConfig(targets=targets, r=1))
    assert all(module.training for module in model.modules())
    assert [hook.__self__ for hook in model._forward_hooks.values()] == [model.capaboost.copy_cache]
