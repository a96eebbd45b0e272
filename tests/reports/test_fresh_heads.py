"""What is fresh in a model trains, is counted and comes back; what is pretrained stays frozen."""

import copy
import warnings

import pytest
import timm
import torch
import torchvision
import transformers as t
from torch import nn

import capaboost_text
from capaboost_core import UserError, inject, load_adapter, parameter_counts, save_adapter, trainable_parameters
from capaboost_core.injection import FrozenHeadWarning

SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
BERT = t.BertConfig(**SMALL, vocab_size=50, num_labels=3)
GPT2 = t.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=50)
T5 = dict(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=50)
PERCEIVER = dict(num_latents=4, d_latents=16, d_model=16, num_blocks=1, num_self_attends_per_block=1, vocab_size=50)
HEADS = dict(num_self_attention_heads=2, num_cross_attention_heads=2, max_position_embeddings=16)


class Own(t.BertPreTrainedModel):
    """Its encoder is not called `bert`, and it says nothing of its embeddings."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder, self.out = t.BertModel(config), nn.Linear(16, 3)

    def forward(self, input_ids, **inputs):
        return self.out(self.encoder(input_ids, **inputs).pooler_output)


class LowRankSettings(t.BertPreTrainedModel):
    """A parameter of its own beside the encoder."""

    def __init__(self, config):
        super().__init__(config)
        self.bert, self.scale, self.out = t.BertModel(config), nn.Parameter(torch.ones(3)), nn.Linear(16, 3)

    def forward(self, input_ids, **inputs):
        return self.scale * self.out(self.bert(input_ids, **inputs).pooler_output)


def both():
    vision = t.ViTConfig(**SMALL, image_size=32, patch_size=16)
    return t.VisionTextDualEncoderModel(t.VisionTextDualEncoderConfig.from_vision_text_configs(vision, BERT))


CASES = {  # the model, the layers to adapt, the prefixes of what trains beside them
    "T5 for questions": (lambda: t.T5ForQuestionAnswering(t.T5Config(**T5)), "q", ["qa_outputs"]),
    "MT5 for questions": (lambda: t.MT5ForQuestionAnswering(t.MT5Config(**T5)), "q", ["qa_outputs"]),
    "UMT5 for questions": (lambda: t.UMT5ForQuestionAnswering(t.UMT5Config(**T5)), "q", ["qa_outputs"]),
    "T5 that writes": (lambda: t.T5ForConditionalGeneration(t.T5Config(**T5)), "q", []),
    "two heads": (lambda: t.GPT2DoubleHeadsModel(GPT2), "c_attn", ["multiple_choice_head"]),
    "GPT-2 that writes": (lambda: t.GPT2LMHeadModel(GPT2), "c_attn", []),
    "an encoder of another name": (lambda: Own(BERT), "query", ["out"]),
    "a parameter beside the encoder": (lambda: LowRankSettings(BERT), "query", ["out", "scale"]),
    "a decoder within the base": (
        lambda: t.PerceiverForSequenceClassification(t.PerceiverConfig(**PERCEIVER, **HEADS)),
        "query",
        ["perceiver.decoder"],
    ),
    "two encoders that are joined": (both, "query", ["visual_projection", "text_projection", "logit_scale"]),
    "words filled in": (lambda: t.BertForMaskedLM(BERT), "query", []),
    "a classifier": (lambda: t.BertForSequenceClassification(BERT), "query", ["classifier"]),
    "an encoder alone": (lambda: t.BertModel(BERT), "query", []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_fresh_trains_is_counted_and_comes_back(tmp_path, case):
    make, target, head = CASES[case]
    torch.manual_seed(0)
    base = make().eval()
    model = capaboost_text.inject(copy.deepcopy(base), dict(r=2, targets=[target]))
    trained = {name: p for name, p in trainable_parameters(model).items() if "lora_" not in name}
    expected = {n for n, _ in base.named_parameters() if any(n == path or n.startswith(path + ".") for path in head)}
    assert trained.keys() == expected
    assert parameter_counts(model).head == sum(p.numel() for p in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1)
    save_adapter(model, tmp_path)
    loaded = load_adapter(base, tmp_path)
    for name, parameter in trained.items():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def small_convnext() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("convnext_tiny", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))


def test_through_the_core_the_classifier_that_timm_names_trains(tmp_path):
    model = inject(small_convnext(), {"method": "lora", "targets": ["mlp.fc1"]})
    assert {"head.fc.weight", "head.fc.bias"} <= trainable_parameters(model).keys()
    assert parameter_counts(model).head == 3 * 8 + 3
    with torch.no_grad():
        model.head.fc.weight.normal_()
    save_adapter(model, tmp_path)
    again = load_adapter(small_convnext(), tmp_path)
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)


def test_what_trains_besides_can_be_named():
    model = inject(small_convnext(), {"method": "lora", "targets": ["mlp.fc1"]}, trainable=())
    assert "head.fc.weight" not in trainable_parameters(model)
    model = inject(small_convnext(), {"method": "lora", "targets": ["mlp.fc1"]}, trainable=("head", "stem.1"))
    assert {"head.fc.weight", "head.norm.weight", "stem.1.weight"} <= trainable_parameters(model).keys()
    with pytest.raises(UserError, match="no module 'hed'"):
        inject(small_convnext(), {"method": "lora", "targets": ["mlp.fc1"]}, trainable=("hed",))


def classifier_of_torchvision() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=3)


FROZEN = {  # through the core, without a plan: the model, its targets, and the layer that is said to stay frozen
    "torchvision": (classifier_of_torchvision, ["mlp.0"], "heads.head"),
    "a classifier of transformers": (lambda: t.BertForSequenceClassification(BERT), ["query"], "classifier"),
    "a sequence": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), ["0"], "2"),
    "an adapted head": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), ["2"], None),
    "timm": (small_convnext, ["mlp.fc1"], None),
    "a language model": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL, vocab_size=50)), ["q_proj"], None),
    "an encoder": (
        lambda: t.BertModel(t.BertConfig(**SMALL | {"num_hidden_layers": 2}, vocab_size=50), add_pooling_layer=False),
        ["query"],
        None,
    ),
}


@pytest.mark.parametrize("case", FROZEN)
def test_a_frozen_layer_that_may_be_a_fresh_head_is_said(case):
    make, targets, frozen = FROZEN[case]
    config = {"method": "lora", "r": 2, "targets": targets}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inject(make(), config)
    said = [str(warning.message) for warning in caught if warning.category is FrozenHeadWarning]
    if frozen is None:
        assert not said
        return
    assert said == [
        f"{frozen} stays frozen; pass trainable=[{frozen!r}] if it is a fresh classifier, else trainable=[]"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FrozenHeadWarning)
        inject(make(), config, trainable=[])
        model = inject(make(), config, trainable=[frozen])
    assert f"{frozen}.weight" in trainable_parameters(model)


def test_a_head_that_is_tied_trains_with_what_it_is_tied_to_or_not_at_all():
    config = {"method": "lora", "r": 2, "targets": ["c_attn"]}
    with pytest.raises(UserError, match=r"trainable: lm_head is tied to transformer.wte; list that, and both train"):
        inject(t.GPT2LMHeadModel(GPT2), config, trainable=["lm_head"])
    for listed in (["transformer.wte"], ["lm_head", "transformer.wte"]):
        model = inject(t.GPT2LMHeadModel(GPT2), config, trainable=listed)
        assert "transformer.wte.weight" in trainable_parameters(model)
        assert model.lm_head.weight.requires_grad
