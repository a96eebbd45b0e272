"""`capaboost prepare-vtab`, and what `train-vtab` says of a set that is not prepared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from capaboost.commands import prepare_vtab, train_vtab
from capaboost.runs.vtab1k import SET_OF_TASK, SETS, is_prepared
from capaboost_vision.vtab.tasks import TASKS

ROOT = Path(__file__).parents[1]


def put(data_dir: Path, task: str) -> None:
    folder = data_dir / TASKS[task].builder / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")


def test_the_sets_are_those_of_the_tasks():
    assert {task: found.builder for task, found in SET_OF_TASK.items()} == {
        task: TASKS[task].builder for task in TASKS
    }
    assert len(SET_OF_TASK) == 19
    assert len({found.builder for found in SETS}) == len(SETS)


@pytest.mark.parametrize("found", SETS, ids=lambda found: found.builder)
def test_sizes_and_downloads_by_hand_are_those_of_the_installed_package(found, tmp_path):
    builder = tfds.builder(found.builder, data_dir=tmp_path)
    instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert bool(instructions) == bool(found.address)
    if found.address:
        assert found.address in instructions
        return
    sizes = [info.size for info in builder.url_infos.values()]
    if found.builder == "caltech101":  # of two archives the first is the one in use
        assert found.download in sizes
    elif found.builder == "eurosat/rgb":  # the other one is that of all 13 bands
        assert found.download == min(sizes)
    else:
        assert found.download == sum(sizes)


def test_a_set_that_is_not_prepared_is_an_error_before_torch_is_imported(tmp_path):
    script = (
        "import sys\nfrom capaboost.commands.train_vtab import main\n"
        f"code = main(['--dataset', 'dtd', '--data-dir', {str(tmp_path)!r}])\n"
        "print(sorted({'torch', 'timm', 'absl', 'tensorflow_datasets', 'capaboost_vision'} & sys.modules.keys()))\n"
        "sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr == (
        f"error: dtd is not in {tmp_path}; prepare it once by `capaboost prepare-vtab dtd --data-dir {tmp_path}` "
        "(download: 596 MiB), or pass --data-dir, --source or --data\n"
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--dataset", "resisc45"], "download: not stated, by hand"),
        (["--dataset", "dtd", "--set", "data.dir=null"], "prepare-vtab dtd` (download"),
        (["--dataset", "cifar", "--method", "full"], "prepare-vtab cifar --data-dir"),
        (["--dataset", "dtd", "--set", "data.protocl=x"], "did you mean data.protocol?"),
        (["--dataset", "dtd", "--method", "loraa"], "lora"),
    ],
)
def test_it_is_checked_with_the_settings_as_they_are_typed(flags, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    assert train_vtab.main(["--data-dir", str(tmp_path), *flags]) == 2
    assert says in capsys.readouterr().err


def test_settings_are_printed_without_the_data(tmp_path, capsys):
    assert train_vtab.main(["--dataset", "dtd", "--data-dir", str(tmp_path), "--print-config"]) == 0
    assert "dataset: dtd" in capsys.readouterr().out


def test_without_names_the_sets_are_listed(tmp_path, capsys):
    put(tmp_path, "dtd")
    assert prepare_vtab.main(["--data-dir", str(tmp_path)]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert len(lines) == len(SETS)
    assert "596 MiB" in lines["dtd"]
    assert "yes" in lines["dtd"]
    assert "by hand" in lines["resisc45"]
    assert "no" in lines["resisc45"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dtdd"], "error: VTAB-1k has no task 'dtdd'; type one of dtd, or --all"),
        (["dtd", "--all"], "error: --all is given beside names; drop one of them"),
        (["dtd"], "error: preparations need tensorflow, which is not installed; type pip install tensorflow"),
    ],
)
def test_wrong_names_and_a_missing_package_are_one_line(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("capaboost_core.extras.is_installed", lambda module: False)
    assert prepare_vtab.main([*arguments, "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(says)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_one_that_fails_does_not_stop_the_next(tmp_path, capsys, monkeypatch):
    """resisc45 lacks its download by hand, cifar has no network; svhn is prepared."""
    monkeypatch.setattr("capaboost_core.extras.is_installed", lambda module: True)

    def download(self):
        if self.name == "cifar100":
            raise ConnectionError("no route")
        put(tmp_path, "svhn")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download)
    arguments = ["resisc45", "cifar", "svhn", "svhn_cropped", "--data-dir", str(tmp_path)]
    assert prepare_vtab.main(arguments) == 2
    printed, errors = capsys.readouterr()
    assert printed == f"svhn: {tmp_path}/svhn_cropped/3.1.0 (official VTAB-1k rows, svhn_cropped 3.1.0)\n"
    first, second, last = errors.splitlines()
    assert first.endswith(f"put NWPU-RESISC45 into {tmp_path}/downloads/manual")
    assert first.startswith("not prepared: resisc45 is downloaded by hand: from https://1drv.ms")
    assert second.startswith("not prepared: cifar100 is not in")
    assert "no route" in second
    assert last == "error: 2 of 3 sets not prepared: resisc45, cifar"


def test_what_lies_there_by_hand_is_prepared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("capaboost_core.extras.is_installed", lambda module: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda self: None)
    (tmp_path / "downloads" / "manual" / "NWPU-RESISC45").mkdir(parents=True)
    assert prepare_vtab.main(["resisc45", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"resisc45: {tmp_path}/resisc45")


def test_a_set_counts_as_prepared_where_tfds_finds_it(tmp_path):
    assert not is_prepared(SET_OF_TASK["sun397"], str(tmp_path))
    (tmp_path / "sun397" / "tfds" / "4.0.0").mkdir(parents=True)  # an interrupted preparation leaves such a folder
    assert not is_prepared(SET_OF_TASK["sun397"], str(tmp_path))
    put(tmp_path, "sun397")
    assert is_prepared(SET_OF_TASK["sun397"], str(tmp_path))


def test_every_set_has_its_line_in_the_page():
    page = (ROOT / "docs" / "vtab.md").read_text(encoding="utf-8")
    for found in SETS:
        names = ", ".join(f"`{task}`" for task in found.tasks)
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {names} | `capaboost")]
        assert f"`capaboost prepare-vtab {found.tasks[0]}`" in line
        assert (f"[by hand]({found.address})" if found.address else found.size) in line
