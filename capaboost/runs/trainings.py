"""A training run made by functions: its settings from a recipe, a preset and typed values, then its training.

The training commands, the sweeps and the rank study share it. What trains is imported when it does, so that a wrong
setting is an error before torch is imported.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaboost.console import answer, note
from capaboost.runs.settings import (
    GlueRun,
    LanguageRun,
    SquadRun,
    VtabRun,
    glue_config_file,
    shipped,
    squad_config_file,
    vtab_config_file,
)
from capaboost.training.settings import Raw, load_run, merge_settings, parse_assignments, sections_in_turn
from capaboost_core.extras import install_line
from capaboost_text.glue.tasks import TASKS

if TYPE_CHECKING:
    from capaboost.training.experiment import Prepare


@dataclass(frozen=True)
class Training:
    """What a training command trains.

    Attributes:
        settings: The class of a run's settings.
        task: The setting that names the task, as section.key.
        module: Its `prepare` makes model and task from the settings.
        recipe: The shipped settings file for typed settings by section and a preset.
        is_positional: Whether the command takes the task as its first argument, not as a flag.
    """

    settings: type
    task: str
    module: str
    recipe: Callable[[Raw, str | None], Path]
    is_positional: bool = False

    def recipe_of(self, flags: Raw, preset: str | None, assignments: Sequence[str] = ()) -> Path:
        """The shipped settings file, which depends on the task, its source and the model, typed in either form.

        Raises:
            UserError: If an assignment is none, or there is no such task or preset.
        """
        return self.recipe(merge_settings(flags, parse_assignments(list(assignments))), preset)

    def load(self, flags: Raw, preset: str | None, assignments: Sequence[str] = (), file: Path | None = None) -> Any:
        """The settings of a run: those of the file, by default the recipe, under the flags, the preset and `--set`.

        Raises:
            UserError: If one is wrong.
        """
        path = file or self.recipe_of(flags, preset, assignments)
        run = load_run(self.settings, path, flags, preset, list(assignments))
        if isinstance(run, VtabRun):
            from capaboost_vision.vtab.sources import check

            check(run.data.dataset, run.data.source, run.data.dir)
        return run

    def data(self, flags: Raw, preset: str | None, assignments: Sequence[str] = (), file: Path | None = None) -> Any:
        """The section `data` of `load` alone, for which torch need not be imported.

        Raises:
            UserError: If one of its settings, or of the sections before it, is wrong.
        """
        path = file or self.recipe_of(flags, preset, assignments)
        sections = sections_in_turn(self.settings, path, flags, preset, list(assignments))
        return next(section for name, section in sections if name == "data")

    @property
    def prepare(self) -> Prepare:
        """Imported when asked for, as it needs timm or transformers."""
        return importlib.import_module(self.module).prepare


def _vtab_recipe(flags: Raw, _: str | None) -> Path:
    data = flags["data"]
    return vtab_config_file(shipped("configs") / "vtab", data["dataset"], data.get("source"))


def _glue_recipe(flags: Raw, preset: str | None) -> Path:
    folder, data = shipped("configs") / "glue", flags["data"]
    if data["task"] not in tuple(TASKS):  # one's own, or a name that the section refuses
        return folder / "_own.yaml"
    return glue_config_file(folder, data["task"], flags.get("model", {}).get("name"), preset)


def _squad_recipe(flags: Raw, _: str | None) -> Path:
    return squad_config_file(shipped("configs") / "squad", flags["data"]["dataset"])


def _language_recipe(*_: Any) -> Path:
    return shipped("configs") / "lm" / "lora.yaml"


TRAININGS = {
    "train-vtab": Training(VtabRun, "data.dataset", "capaboost.runs.vtab", _vtab_recipe),
    "train-glue": Training(GlueRun, "data.task", "capaboost.runs.glue", _glue_recipe),
    "train-squad": Training(SquadRun, "data.dataset", "capaboost.runs.squad", _squad_recipe),
    "train-lm": Training(LanguageRun, "data.file", "capaboost.runs.lm", _language_recipe, is_positional=True),
}


def train(
    run: Any,
    folder: Path,
    resume: bool,
    prepare: Prepare,
    rates: list[float] | None = None,
    command: str | None = None,
) -> None:
    """Train with the settings, or with each learning rate of a grid, and show the result.

    Args:
        run: All settings.
        folder: Where the run lives.
        resume: Continue from the folder's checkpoint.
        prepare: Makes the model and the task.
        rates: A run for each of them, of which the best is kept.
        command: What `result.json` says was typed, by default the command line of this process.

    Raises:
        UserError: If the settings, the data or the folder do not permit the run, or it diverges.
    """
    from accelerate import PartialState

    from capaboost.training.experiment import run_experiment
    from capaboost.training.result import print_table
    from capaboost.training.run_folder import tracker
    from capaboost.training.tuning import run_grid

    found = find_spec("tensorboard") or find_spec("tensorboardX") or tracker() != "tensorboard"
    if not found and os.environ.get("RANK", "0") == "0":
        note(f"tensorboard is not installed: no TensorBoard logs are written; {install_line('tensorboard')} adds them")
    if rates is not None:
        result = run_grid(run, rates, folder, resume, prepare)
    else:
        result = run_experiment(run, folder, resume, prepare, command)
    if result:
        print_table([result])
        answer(f"result: {folder / 'result.json'}")
        _write_card(folder, result)
    PartialState().destroy_process_group()


def _write_card(folder: Path, result: dict[str, Any]) -> None:
    """The model card beside the adapter, which goes with it to the hub, and the picture of the confusion matrix."""
    from capaboost.hub import adapter_folder, write_card
    from capaboost_core.adapter_files.record import read_inference

    adapter = adapter_folder(folder)
    write_card(adapter, result, read_inference(adapter))
    source = adapter.parent / "confusion.csv"
    if source.is_file() and find_spec("matplotlib"):
        from capaboost.plots.draw import draw_confusion

        draw_confusion(source, source.with_suffix(".png"))
        print(f"accuracy of each class: {source}, and as a picture {source.with_suffix('.png')}")
