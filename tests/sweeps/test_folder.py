"""What two sweeps that start in one folder at a time both write."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from capaboost.sweeps.claims import claimed, is_held
from capaboost.sweeps.folder import SweepFolder
from capaboost.sweeps.sweep_file import SweepFile

SWEEP = SweepFile.from_dict({"command": "train-vtab", "tasks": ["digits"], "methods": ["lora"], "seeds": [42]})


def test_sweeps_that_start_together_in_one_folder_do_not_take_each_others_file_away(tmp_path):
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(write_often, [tmp_path] * 4))
    assert SweepFolder(tmp_path).sweep() == SWEEP
    assert not list(tmp_path.glob("*.partial"))


def write_often(folder: Path) -> None:
    for _ in range(50):
        SweepFolder(folder).write_sweep(SWEEP)


def test_claims_of_long_names_are_files_of_their_own(tmp_path):
    long = ["digits/" + "r" * 150 + "/" + "s" * 150 + end for end in "ab"]
    runs = [SimpleNamespace(name=name) for name in long]
    with claimed(SweepFolder(tmp_path).claim(runs[0])) as mine:
        assert mine
        assert [is_held(SweepFolder(tmp_path).claim(run)) for run in runs] == [True, False]


def test_a_retry_forgets_the_failures_of_those_that_failed_and_passes_over_the_rest(tmp_path):
    folder = SweepFolder(tmp_path)
    runs = [SimpleNamespace(name=f"digits/lora/seed{seed}") for seed in (1, 2)]
    folder.fail(runs[1], "no disk", "error", "capaboost train-vtab")
    folder.forget_failures(runs)
    assert not list(tmp_path.rglob("failed.json"))
