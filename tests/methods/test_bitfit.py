"""BitFit trains the biases of a model, all of them, and nothing else."""

import pytest
import torch
from torch import nn

import capaboost_text
from capaboost_core import UserError, load_adapter, parameter_counts, save_adapter, trainable_parameters
from tests.compatibility.models import base, logits
from tests.methods.cases import KINDS, UNSEEN, adapted, out


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_the_biases_and_the_head_alone(kind):
    model, before = adapted("bitfit", kind), dict(base(kind).named_parameters())
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
    logits(model).square().sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    biases = {name for name in before if name.split(".")[-1] == "bias"}
    head = {name for name in before if name.split(".")[0] in ("head", "classifier")}
    # The bias of all keys alike gets no gradient but rounding.
    assert moved | {name for name in biases if name.endswith(UNSEEN)} == biases | head
    assert parameter_counts(model).trainable == sum(before[name].numel() for name in biases - head)


def test_trained_biases_are_saved(tmp_path):
    model = adapted("bitfit", "vit")
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias.add_(1.0)
    save_adapter(model, tmp_path)
    assert torch.equal(out(load_adapter(base("vit"), tmp_path)), out(model))


def test_a_model_without_biases_is_refused():
    model = base("modernbert")
    assert isinstance(model.classifier.bias, nn.Parameter)
    with pytest.raises(UserError, match="bitfit trains biases, but ModernBertForSequenceClassification has none"):
        capaboost_text.inject(model, "bitfit")
