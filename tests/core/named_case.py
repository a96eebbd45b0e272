"""Models with several adapters by name, and all of their state."""

import torch

import capaboost_text
import capaboost_vision
from capaboost_core import (
    active_adapter,
    adapter_names,
    load_adapter,
    save_adapter,
    trainable_parameters,
)
from tests.compatibility.models import base, drawn
from tests.core.toy_model import X, randomise
from tests.core.toy_model import adapted as adapted_net
from tests.methods.cases import settings

IMAGES = drawn("eight images", (8, 3, 32, 32), 1.0)
TOKENS = torch.arange(40).reshape(8, 5) % 50


def own(kind, name, preset="capaboost-lora", **changes):
    """A model in double precision with one adapter, whose additions and head are drawn after its name."""
    model = (capaboost_text if kind == "bert" else capaboost_vision).inject(
        base(kind).double(), settings(preset, **changes)
    )
    with torch.no_grad():
        for key, parameter in trainable_parameters(model).items():
            parameter.copy_(drawn(f"{name}.{key}", tuple(parameter.shape), 0.2))
    return model.eval()


def run(model, rows=slice(None)):
    x = TOKENS[rows] if hasattr(model, "config") else IMAGES[rows].double()
    return model(x).logits if hasattr(model, "config") else model(x)


def net(tmp_path, *others, **changes):
    """A tiny model with `default`, and capaboost adapters of other settings saved and loaded by name."""
    model = randomise(adapted_net(**changes))
    for name in others:
        torch.manual_seed(len(name))
        save_adapter(randomise(adapted_net(seed=len(name))), tmp_path / name)
        load_adapter(model, tmp_path / name, name=name)
    return model.eval()


def state(model):
    """All that a failure could change, of the model and of the adapters that are not active."""
    record, output = vars(model).get("capaboost_adapters"), model(X)  # first, as the watch for dead additions leaves
    return (
        adapter_names(model),
        active_adapter(model),
        [(path, id(module), sorted(vars(module))) for path, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p.detach().clone().tolist()) for name, p in model.named_parameters()],
        [(key, value.tolist()) for key, value in (record.state("") if record else {}).items()],
        [len(hooks) for hooks in (model._forward_hooks, model._forward_pre_hooks, model._state_dict_hooks)],
        output.tolist(),
    )
