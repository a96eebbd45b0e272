"""What a method is: its settings, the layers that it puts in, and what it does around training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from capaboost_core.errors import UserError
from capaboost_core.methods.named_settings import NamedSettings
from capaboost_core.methods.registry import PRESETS
from capaboost_core.settings.base import hint

if TYPE_CHECKING:
    from torch import Tensor, nn

    from capaboost_core.adapted import Adapted
    from capaboost_core.plan import Plan, Target
    from capaboost_core.roles import Roles

# Settings by which an added weight grows.
SIZES = ("r", "init_r", "max_r", "left", "phm_rank", "prefix_length", "bottleneck")
SIZES += ("dims", "lora_dim", "adapter_dim", "prompt_dim")


class Method(NamedSettings):
    """A way to adapt a model, with its settings; its subclasses are the methods.

    `Method(method="lora", r=4)` is the one of that name, as in settings and files. A subclass says in
    pydantic fields what can be set, in `plan` where it goes, in `layers` what it puts there, and overrides what
    else it needs.

    Attributes:
        name: Given by `register_method`.
        layers: The adapted layer for each class of frozen layer, made as cls(base, method, target).
        wanted: These classes in words.
        integrated: Whether integrations put their libraries' classes into `layers`.
        recipe: The method whose settings files it takes where it has none of its own.
        budget: The setting that a budget of parameters changes.
        starts_as_base: Whether an adapted model computes as its base at first, with the default settings.

    Raises:
        UserError: If a setting is unknown to the method, or is out of range.
    """

    layers: ClassVar[dict[type[nn.Module], type[Adapted]]] = {}
    wanted: ClassVar[str] = "layer that this method adapts"
    integrated: ClassVar[bool] = False
    recipe: ClassVar[str] = "lora"
    budget: ClassVar[str | None] = None
    starts_as_base: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """The name in results and folders."""
        return self.name

    @property
    def budget_step(self) -> int:
        """What the setting that a budget changes is a multiple of."""
        return 1

    @property
    def size(self) -> int:
        """The largest setting by which its weights grow, times the number of experts."""
        values = [getattr(self, name, None) for name in SIZES]
        sizes = [
            size for value in values if value is not None for size in (value if isinstance(value, tuple) else (value,))
        ]
        return max(sizes, default=0) * getattr(self, "num_experts", 1)

    @property
    def stored_share(self) -> float:
        """Of a weight that has `size` entries or more, the share that a file holds; 0 where layers bound the size."""
        return getattr(self, "density", 1.0)

    def plan(self, model: nn.Module, roles: Roles) -> Plan:
        """Which layers of a model it takes, by their roles.

        Raises:
            UserError: If the model has no place for it.
        """
        from capaboost_core.plan import Plan  # imports torch, which settings alone do not need

        return Plan((), roles.head)

    def check(self, model: nn.Module, plan: Plan) -> None:
        """Refuse a plan with which nothing would be trained.

        Raises:
            UserError: If so.
        """
        if self.layers and not plan.targets:
            advice = "give targets" if "targets" in type(self).model_fields else "choose lora, padapter or hadapter"
            raise UserError(f"method {self.name} found nothing to adapt in {type(model).__name__}; {advice}")

    def make_layers(self, modules: Mapping[str, nn.Module], plan: Plan) -> dict[str, Adapted]:
        """The adapted layers by path; a parameter that is given to several of them is shared, and saved once.

        Raises:
            UserError: If a target is no layer of the method's kind.
        """
        targets = plan.targets if self.layers or self.integrated else ()
        self.check_kinds(modules, targets)
        followed = {t.path: {"linear": modules[t.follows]} if t.follows else {} for t in targets}
        return {
            t.path: self.layers[type(modules[t.path])](modules[t.path], self, t, **followed[t.path]) for t in targets
        }

    def check_kinds(self, modules: Mapping[str, nn.Module], targets: Iterable[Target]) -> None:
        """Refuse a target that is no layer of the method's kind.

        Raises:
            UserError: If there is one.
        """
        for target in targets:
            if type(modules.get(target.path)) not in self.layers:
                raise UserError(self._refusal(target.path, type(modules.get(target.path))))

    def _refusal(self, path: str, found: type) -> str:
        if not self.integrated:
            return f"target {path} is a {found.__name__}, not an {self.wanted}; choose other targets"
        advice = "" if self.layers else "import capaboost_vision or capaboost_text, which know theirs, or "
        return (
            f"method {self.name} has no form for {path}, a {found.__module__}.{found.__name__}; {advice}choose lora, "
            "padapter or hadapter"
        )

    @property
    def is_hooked(self) -> bool:
        """Whether a training loop must call it around each step."""
        hooks = ("lr_factor", "objective", "penalty", "after_step")
        return any(getattr(type(self), name) is not getattr(Method, name) for name in hooks)

    def problem(self, model: nn.Module) -> str | None:
        """What makes the values of the additions no state of this method, in words; asked on saving and loading."""
        return None

    def trains(self, name: str) -> bool:
        """Whether a parameter of the base model is trained, by its name; the head always is."""
        return False

    def lr_factor(self, name: str) -> float:
        """What the run's learning rate is multiplied by for a trained parameter, by its name."""
        return 1.0

    def objective(self, loss_of: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of (a slice of) a batch, in as many passes as the method needs.

        Args:
            loss_of: The task's loss.
            model: As the loss calls it, wrapped for several processes.
            batch: Of the task's examples.
        """
        return loss_of(model, batch)

    # The training loop calls what follows in every process with the bare model, the penalty alone under autograd.

    def penalty(self, model: nn.Module) -> Tensor | None:
        """What is added to the mean loss of each step, once, however many slices and processes share its batch."""

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Called after optimizer step `step`, from 1, of `steps` in all, while the gradients are still there.

        It must do the same in every process, so it draws no random numbers of its own.
        """

    def state(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint has to hold beside the trained parameters.

        Nested dicts and lists of tensors and plain values, all finite, with the same names, shapes and types at any
        time. A selected epoch has its own.
        """
        return {}

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave; its tensors may be on the CPU."""

    def loaded(self, layers: list[Adapted], of_base: bool) -> None:
        """Called after a state dict was loaded into an adapted model.

        Args:
            layers: Its adapted layers.
            of_base: Whether the state dict was that of the base model alone.
        """

    def finish(self, model: nn.Module) -> None:
        """Called once, after the last step and the return to a selected epoch, and before testing and saving."""


def check_preset(name: str) -> None:
    """Refuse a name that no preset has.

    Raises:
        UserError: If so.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; {hint(name, PRESETS)}")


def resolve_config(value: Method | Mapping[str, Any] | str, **changes: Any) -> Method:
    """A method from itself, from its settings, or from the name of a preset; `changes` replace its settings.

    Raises:
        UserError: If the preset is unknown, or a setting is.
    """
    if isinstance(value, str):
        check_preset(value)
        value = PRESETS[value]
    if isinstance(value, Method):
        return value.replace(**changes) if changes else value
    if isinstance(value, Mapping):
        return Method.from_dict({**value, **changes})
    raise UserError(
        f"capaboost is a {type(value).__name__}; give a CapaBoostConfig, a dict of its settings, or a preset name"
    )
