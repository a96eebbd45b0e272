"""Put a planned adapter into a model, and say what it is then."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn

from capaboost_core.adapted import Adapted
from capaboost_core.bottleneck import AdapterDropout, AdapterLinear, AdapterNorm
from capaboost_core.bypass import check_reached, close_fast_paths
from capaboost_core.config import CapaBoostConfig, resolve_config
from capaboost_core.errors import UserError
from capaboost_core.lora import CapaLinear
from capaboost_core.masks import checksum
from capaboost_core.method_settings import TARGET_WORDS
from capaboost_core.plan import Plan, Target, in_prefix, plan_suffixes
from capaboost_core.prefix import ATTENTIONS
from capaboost_core.wrappers import named_parameters, unwrap

ADAPTERS = {nn.Linear: AdapterLinear, nn.LayerNorm: AdapterNorm, nn.Dropout: AdapterDropout}
LAYERS = {"lora": {nn.Linear: CapaLinear}, "padapter": ADAPTERS, "hadapter": ADAPTERS, "prefix": ATTENTIONS}


@dataclass(frozen=True)
class Injection:
    """What `inject` leaves on the model as `model.capaboost`."""

    config: CapaBoostConfig
    plan: Plan
    base_model: str


@dataclass(frozen=True)
class ParameterCounts:
    """Trainable parameters without the head, those of the head, and all of the base model without either."""

    trainable: int
    head: int
    total: int

    @property
    def percent(self) -> float:
        """Trainable share of the full model in percent, head not counted, as the paper's tables give it."""
        return 100 * self.trainable / self.total if self.total else 0.0


def inject(model: nn.Module, config: CapaBoostConfig | dict | str, plan: Plan | None = None) -> nn.Module:
    """Adapt a model in place: swap the planned layers, freeze all but the additions and the head.

    Args:
        model: Any model; at initialisation its output stays as it is, but for `prefix`.
        config: A configuration, a dict of its settings, or the name of a preset.
        plan: What to adapt, and what of the base trains as its head; without one, `config.targets` has to list
            module suffixes, and all of the base is frozen.

    Raises:
        UserError: If nothing is to be adapted, a target is no layer of the method's kind, or the model has
            been adapted before. The model is then as it was.
    """
    config = resolve_config(config)
    plan = plan or _plan_explicit(model, config)
    return attach(model, Injection(config, plan, base_name(model)), build(model, config, plan))


def build(model: nn.Module, config: CapaBoostConfig, plan: Plan) -> dict[str, Adapted]:
    """Check everything and make the adapted layers by path; the model is not changed."""
    if hasattr(model, "capaboost"):
        raise UserError("the model is adapted already; start from a fresh base model")
    layers = LAYERS.get(config.method, {})
    if config.method in LAYERS and not plan.targets:
        raise UserError(f"method {config.method} found nothing to adapt in {type(model).__name__}; give targets")
    if config.method == "linear" and not _head_parameters(model, plan):
        raise UserError(f"method linear trains the head only, but {type(model).__name__} has none; set num_classes")
    modules = dict(model.named_modules())
    chosen = plan.targets if config.method in LAYERS else ()
    for target in chosen:
        found = type(modules.get(target.path))
        if found not in layers:
            wanted = _wanted(config.method)
            raise UserError(f"target {target.path} is a {found.__name__}, not an {wanted}; choose other targets")
        check_reached(model, target.path, modules[target.path])
    any(warn_of_rank(config.r, modules[t.path], t) for t in chosen if layers[type(modules[t.path])] is CapaLinear)
    beside = {t.path: {"beside": modules[t.beside]} if t.beside else {} for t in chosen}
    return {t.path: layers[type(modules[t.path])](modules[t.path], config, t, **beside[t.path]) for t in chosen}


def warn_of_rank(r: int, layer: nn.Linear, target: Target) -> bool:
    """Say that r is above the layer's width: allowed, as files may hold it, but it adds parameters and no rank."""
    width = min(layer.in_features, *(stop - start for start, stop in target.slices or ((0, layer.out_features),)))
    if r > width:
        warnings.warn(f"r is {r}, above the width {width} of {target.path}: that adds no rank; lower r", stacklevel=2)
    return r > width


def attach(model: nn.Module, injection: Injection, layers: dict[str, Adapted]) -> nn.Module:
    """Swap the built layers in and set what is trainable."""
    head = _head_parameters(model, injection.plan)
    model.requires_grad_(injection.config.method == "full")
    for parameter in head.values():
        parameter.requires_grad_(True)
    for path, layer in layers.items():
        model.set_submodule(path, layer)
    if layers:
        close_fast_paths(model, layers)
        for path, attribute in injection.plan.switches:
            setattr(model.get_submodule(path), attribute, True)
    model.capaboost = injection
    model.register_load_state_dict_pre_hook(_accept_base_checkpoint)
    return model


def adapted_layers(model: nn.Module) -> list[Adapted]:
    """The adapted layers in module order."""
    return [module for module in model.modules() if isinstance(module, Adapted)]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All trainable parameters by name, the head's included: what an optimizer gets and a file holds."""
    return {name: parameter for name, parameter in named_parameters(model).items() if parameter.requires_grad}


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count an adapted model's parameters: the same merged or not, and whether the head is frozen or not.

    Raises:
        UserError: If the model has not been adapted.
    """
    head = _head_parameters(model, injection_of(model).plan)
    added = sum(p.numel() for layer in adapted_layers(model) for p in layer.own_parameters().values())
    trainable = sum(p.numel() for name, p in trainable_parameters(model).items() if name not in head)
    everything, of_head = (sum(p.numel() for p in ps) for ps in (model.parameters(), head.values()))
    return ParameterCounts(trainable, of_head, everything - added - of_head)


def mask_checksum(layers: list[Adapted]) -> str:
    """SHA-256 over the masks of the layers, keyed by module path and weight."""
    return checksum(
        (f"{layer.path}.{name}", tied.bits.cpu().numpy())
        for layer in layers
        for name, tied in layer.tied_weights().items()
    )


def injection_of(model: nn.Module) -> Injection:
    """The record that `inject` left.

    Raises:
        UserError: If there is none.
    """
    model = unwrap(model)
    if not hasattr(model, "capaboost"):
        raise UserError("the model has no adapter; call inject(model, config) first")
    return model.capaboost


def base_name(model: nn.Module) -> str:
    """Architecture name as timm (`pretrained_cfg`) or transformers (`config`) record it, else the class."""
    timm_cfg = getattr(model, "pretrained_cfg", None) or {}
    name = timm_cfg.get("architecture") or getattr(getattr(model, "config", None), "name_or_path", None)
    return name or type(model).__name__


def _wanted(method: str) -> str:
    if method == "prefix":
        return "attention of capaboost_vision or capaboost_text (import the one that you need)"
    return " or ".join(f"nn.{layer.__name__}" for layer in LAYERS[method])


def _plan_explicit(model: nn.Module, config: CapaBoostConfig) -> Plan:
    if config.method == "prefix":
        raise UserError(
            "method prefix depends on the architecture; use capaboost_vision.inject or capaboost_text.inject"
        )
    if config.method in LAYERS and config.targets in TARGET_WORDS:
        raise UserError(
            f"targets: {config.targets} depends on the architecture; use capaboost_vision.inject for timm models, "
            "or list module suffixes such as [attn.qkv, mlp.fc1]"
        )
    suffixes = (config.targets,) if isinstance(config.targets, str) else config.targets
    return plan_suffixes(model, suffixes) if config.method in LAYERS else Plan(())


def _head_parameters(model: nn.Module, plan: Plan) -> dict[str, nn.Parameter]:
    return {n: p for n, p in named_parameters(model).items() if any(in_prefix(n, prefix) for prefix in plan.head)}


def _accept_base_checkpoint(model: nn.Module, state: dict, prefix: str, *_) -> None:
    """A checkpoint of the base alone loads strictly: what it lacks is just the whole adapter."""
    own = {
        f"{prefix}{layer_path}.{name}": parameter
        for layer_path, layer in model.named_modules()
        if isinstance(layer, Adapted)
        for name, parameter in layer.own_parameters().items()
    }
    if own and not own.keys() & state.keys():
        state.update({name: parameter.detach() for name, parameter in own.items()})
