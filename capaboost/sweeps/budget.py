"""What a sweep leaves to the settings of its runs: the knob of each method that meets its budget, by the model of the
first task, and the epoch by which tuning runs are judged.
"""

from __future__ import annotations

from capaboost.budget import refuse_given, solve, subject_of, told
from capaboost.sweeps.runs import final_runs, groups
from capaboost.sweeps.sweep_file import SweepFile, Values
from capaboost.sweeps.work import command_of, options_of
from capaboost_core.console import tell
from capaboost_core.errors import UserError


def within_budget(sweep: SweepFile) -> SweepFile:
    """The sweep with the knob of each method that comes nearest to its budget, told in a line each; without a budget
    itself. A method that has no knob takes part as it is, and so does one whose own settings in the file give it.

    Raises:
        UserError: If a setting is wrong, the budget is no number, or a knob is given for all methods.
    """
    if sweep.budget is None:
        return sweep
    task, varied = next(iter(sweep.tasks)), next(iter(sweep.varied))
    methods = {name: _settings(sweep, (task, name, varied)) for name in sweep.methods}
    return sweep.replace(methods=methods, budget=None)


def judged_alike(sweep: SweepFile) -> SweepFile:
    """The sweep whose tuning runs are judged by the epoch that its final runs test, where the file does not say.

    Raises:
        UserError: If a setting is wrong.
    """
    if sweep.tune is None or sweep.tune.epoch is not None:
        return sweep
    run = final_runs(sweep, groups(sweep)[0], {})[0]
    try:
        settings = command_of(run).load(options_of(run))
    except UserError as error:
        raise UserError(f"{run.name}: {error}") from error
    selects = settings.data.protocol == settings.selecting and settings.train.select is None
    return sweep.replace(tune=sweep.tune.replace(epoch="best" if selects else "last"))


def _settings(sweep: SweepFile, group: tuple[str, ...]) -> Values:
    own = sweep.methods[group[1]]
    run = final_runs(sweep, group, {})[0]
    try:
        settings = command_of(run).load(options_of(run))
        knob = settings.adapter.budget
        if knob is None:
            tell(f"budget: {group[1]} has no knob and takes part as it is")
            return own
        if f"adapter.{knob}" in own:
            tell(f"budget: {group[1]} keeps its own {knob}, {own[f'adapter.{knob}']}")
            return own
        refuse_given(settings.adapter, {**run.values, **(sweep.tune.grid if sweep.tune else {})})
        found = solve(subject_of(settings), settings.adapter, sweep.budget, sweep.nearest)
    except UserError as error:
        raise UserError(f"{run.name}: {error}") from error
    tell(told(found))
    return own | {f"adapter.{knob}": getattr(found.method, knob)}
