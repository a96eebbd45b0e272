"""The SQuAD configurations hold the numbers of Tables 14 and 15."""

from pathlib import Path

import pytest

from capaboost_core.training.run_config import build_run
from capaboost_core.training.run_file import read_config
from capaboost_text.squad.run import SquadRun

FOLDER = Path(__file__).parents[2] / "configs" / "squad"
WIDTHS = (64, 32, 16, 8)  # Table 14, CapaBoost-PAdapter
CASES = [(version, width) for version in ("v1", "v2") for width in WIDTHS]


def test_there_is_one_file_for_each_budget():
    assert {p.name for p in FOLDER.glob("*")} == {"_base.yaml", *(f"{v}_padapter_{w}.yaml" for v, w in CASES)}


@pytest.mark.parametrize(("version", "width"), CASES)
def test_numbers(version, width):
    path = FOLDER / f"{version}_padapter_{width}.yaml"
    command = path.read_text().splitlines()[0]
    name = path.relative_to(FOLDER.parents[1]).as_posix()
    assert command == f"# accelerate launch tools/train_squad.py --dataset squad_{version} --config {name}"
    run = read_config(path)
    assert run["model"] == {"name": "microsoft/deberta-v3-base"}
    assert run["data"] == {"dataset": f"squad_{version}", "dir": None, "max_length": 384, "stride": 128}
    adapter = build_run(SquadRun, run).adapter
    assert (adapter.method, adapter.r, adapter.num_tied, adapter.density) == ("padapter", width, 2, 0.5)
    assert (adapter.scaling, adapter.init) == (1.0, "official")
    expected = {"epochs": 15, "batch_size": 64, "lr": 5e-4, "weight_decay": 0.01, "warmup_steps": 1000}
    assert expected.items() <= run["train"].items()
    assert (run["train"]["schedule"], run["train"]["seed"]) == ("linear", 42)
