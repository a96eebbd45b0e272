"""A sweep's budget: the knob of each method, by the model of the first task."""

from __future__ import annotations

from capaboost.budget import solve, subject_of, told
from capaboost.sweeps.runs import combinations, final_runs, label
from capaboost.sweeps.sweep_file import SweepFile, Values
from capaboost.sweeps.work import command_of, options_of
from capaboost_core.console import tell
from capaboost_core.errors import UserError


def within_budget(sweep: SweepFile) -> SweepFile:
    """The sweep with the knob of each method that comes nearest to its budget, told in a line each; without a budget
    itself. A method that has no knob takes part as it is.

    Raises:
        UserError: If a setting is wrong, or the budget is no number.
    """
    if sweep.budget is None:
        return sweep
    task, varied = next(iter(sweep.tasks)), label(combinations(sweep.vary)[0])
    methods = {name: _settings(sweep, (task, name, varied)) for name in sweep.methods}
    return sweep.replace(methods=methods, budget=None)


def _settings(sweep: SweepFile, group: tuple[str, ...]) -> Values:
    own = sweep.methods[group[1]]
    run = final_runs(sweep, group, {})[0]
    try:
        settings = command_of(run).load(options_of(run))
        if settings.adapter.budget is None:
            tell(f"budget: {group[1]} has no knob and takes part as it is")
            return own
        found = solve(subject_of(settings), settings.adapter, sweep.budget)
    except UserError as error:
        raise UserError(f"{run.name}: {error}") from error
    tell(told(found))
    return own | {f"adapter.{found.method.budget}": getattr(found.method, found.method.budget)}
