"""What a sweep shows, from what its folder holds."""

import io
import socket

import pytest
from rich.console import Console

from capaboost.sweeps.display import duration, line, progress_of, screen
from capaboost.sweeps.estimate import SETUP_SECONDS, Estimator
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.plan import plan_of
from tests.sweeps.case import put_result, sweep_file


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    """One run of linear is done, one of lora has failed, another one is at epoch 1 of 2."""
    folder = SweepFolder(tmp_path)
    put_result(folder, "digits/linear/seed1", 90.0)
    runs = {run.name: run for run in plan_of(sweep_file(), folder).runs}
    folder.fail(runs["digits/lora/seed1"], "no disk", "error", "capaboost train-vtab")
    running = runs["digits/lora/seed2"]
    folder.place(running).mkdir()
    (folder.place(running) / "metrics.jsonl").write_text("{}\n")
    folder.claim(running).parent.mkdir()
    folder.claim(running).write_text(f'{{"host": "{socket.gethostname()}-other", "pid": 1}}')
    return folder


def drawn(progress) -> str:
    file = io.StringIO()
    Console(file=file, width=100).print(screen("digits", progress))
    return file.getvalue()


def test_the_screen_tells_what_is_done_running_failed_left_and_best(folder):
    plan = plan_of(sweep_file(), folder)
    progress = progress_of(folder, plan, Estimator(folder, 1e9, plan.runs))
    head, bar, blank, *rows = [row.rstrip() for row in drawn(progress).splitlines()]
    assert head.startswith("digits: 1 of 4 done, 1 running, 1 failed; about ")
    assert bar[0] != " "
    assert not blank
    assert [row.split() for row in rows] == [
        ["running", "epoch", "left"],
        ["digits/lora/seed2", "1/2", *rows[1].split()[2:]],
        ["task", "best", "so", "far", "metric", "mean", "seeds"],
        ["digits", "linear", "accuracy", "90.00", "1"],
    ]


def test_of_perplexity_the_lowest_is_best_so_far(tmp_path):
    folder = SweepFolder(tmp_path)
    for method, value in (("linear", 30.0), ("lora", 20.0)):
        put_result(folder, f"digits/{method}/seed1", value, "perplexity")
    plan = plan_of(sweep_file(), folder)
    (best,) = progress_of(folder, plan, Estimator(folder, 1e9, plan.runs)).best
    assert (best.method, best.mean) == ("lora", 20.0)


def test_the_time_left_is_by_the_finished_runs_and_halves_for_a_half_finished_one(folder):
    plan = plan_of(sweep_file(), folder)
    estimator = Estimator(folder, 1.0, plan.runs)  # a speed that would take years
    by_name = {run.name: estimator.seconds(run) for run in plan.runs}
    assert by_name["digits/linear/seed1"] == 2.0  # as it was measured
    work = {run.name: estimator.work(run) for run in plan.runs}
    ratio = work["digits/lora/seed2"] / work["digits/linear/seed1"]
    assert by_name["digits/lora/seed2"] == pytest.approx(SETUP_SECONDS + 2.0 / 2 * ratio)
    progress = progress_of(folder, plan, estimator)
    assert progress.seconds_left == pytest.approx(by_name["digits/linear/seed2"] + by_name["digits/lora/seed2"] / 2)


def test_without_a_terminal_a_line_tells_each_end(folder):
    plan = plan_of(sweep_file(), folder)
    progress = progress_of(folder, plan, Estimator(folder, 1e9, plan.runs))
    done, _, failed, _ = plan.runs
    assert line(folder, done, 1, progress).startswith("[1/4] digits/linear/seed1: accuracy 90.00 in 2 s; about ")
    assert line(folder, failed, 2, progress).startswith("[2/4] digits/lora/seed1: failed: no disk; about ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(2, "2 s"), (600, "10 min"), (7200, "2.0 h"), (4e5, "4.6 days"), (1e7, "115.7 days")]
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text
