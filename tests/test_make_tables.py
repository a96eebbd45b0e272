"""Tables are made from result files only: seeds are averaged, nothing else is."""

import csv
import json
import os
import re
from pathlib import Path

import pytest

from capaboost.commands import tables
from capaboost.tables.read import read_results
from capaboost.tables.row_settings import settings_of
from capaboost.tables.rows import make_rows
from capaboost.tables.write import BEGIN, END
from tests.toy_result import RESULT


def write(folder: Path, **changes) -> None:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(RESULT | changes))


def config(seed: int, lr: float = 0.001) -> dict:
    return {"train": {"seed": seed, "lr": lr, "output_dir": f"runs/{seed}"}}


def test_seeds_become_mean_and_sample_deviation(tmp_path):
    for seed, value in enumerate((90.0, 94.0, 98.0)):  # mean 94, deviation sqrt((16 + 0 + 16) / 2) = 4
        write(tmp_path / f"run{seed}", seed=seed, value=value, config=config(seed))
    write(tmp_path / "linear", method="linear", value=80.25, trainable_parameters=0, percent_trainable=0)
    outputs = {kind: tmp_path / f"out/table.{kind}" for kind in ("markdown", "csv")}
    tables.main([str(tmp_path), *(f"--{kind}={path}" for kind, path in outputs.items())])
    lines = outputs["markdown"].read_text().splitlines()
    assert len(lines) == 4
    assert "| accuracy 94 ± 4 (3 seeds) | 221,184 | 0.26 | 20 | cpu | seed 0 |" in lines[2]
    assert "| linear | lr 0.001 | test | accuracy 80.25 (1 seed) | 0 | 0.00 |" in lines[3]
    rows = list(csv.DictReader(outputs["csv"].read_text().splitlines()))
    assert (rows[0]["mean"], rows[0]["std"], rows[0]["seeds"]) == ("94.0", "4.0", "3")
    assert (rows[1]["mean"], rows[1]["std"]) == ("80.25", "")


def test_masks_that_move_with_the_seed_are_one_row(tmp_path):
    for seed, entries in enumerate((100, 103, 103)):
        settings = config(seed) | {"adapter": {"method": "lora", "r": 1, "seed": seed}}
        write(tmp_path / f"{seed}", seed=seed, config=settings, trainable_parameters=entries)
    (row,) = make_rows(read_results([tmp_path]))
    assert (row.seeds, row.trainable_parameters) == (3, 102)


def test_different_settings_are_not_averaged(tmp_path):
    write(tmp_path / "a", config=config(0))
    write(tmp_path / "b", seed=1, config=config(1, lr=0.01))
    assert [row.seeds for row in make_rows(read_results([tmp_path]))] == [1, 1]


def test_readme_gets_the_table_between_its_markers(tmp_path, capsys):
    write(tmp_path / "a")
    readme = tmp_path / "README.md"
    readme.write_text(f"top\n{BEGIN}\nold\n{END}\nbottom\n")
    for _ in range(2):
        tables.main([str(tmp_path), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("top\n")
    assert text.endswith(f"{END}\nbottom\n")
    assert text.count("accuracy 90 (1 seed)") == 1
    assert "old" not in text
    assert "accuracy 90 (1 seed)" in capsys.readouterr().out


def on_terminal(monkeypatch, columns: int) -> None:
    for name, value in {"TTY_COMPATIBLE": "1", "FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", str(columns))


@pytest.mark.parametrize("seeds", [{1: 0.001}, {1: 0.001, 2: 0.1}])
def test_a_table_fits_a_narrow_terminal(seeds, tmp_path, capsys, monkeypatch):
    """One row is a list; of two that differ in their rate, what they share stands below."""
    for seed, lr in seeds.items():
        write(tmp_path / str(seed), seed=seed, config=config(seed, lr))
    on_terminal(monkeypatch, 80)
    assert tables.main([str(tmp_path)]) == 0
    out = re.sub("\x1b[^m]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= 80
    alone = [line.split() for line in out.splitlines() if not line.startswith(("┃", "│"))]
    assert ["model", RESULT["model"]] in alone
    assert ("In all rows:" in out) == (len(seeds) == 2)
    assert "lr 0.001" in out


def refusal(capsys, *arguments: str) -> str:
    """The one line with which the command refuses, after exit code 2."""
    assert tables.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert not out
    return line


def test_wrong_input_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "twice" / "a")
    write(tmp_path / "twice" / "b")
    write(tmp_path / "lacking", value=None)
    write(tmp_path / "broken")
    (tmp_path / "broken" / "result.json").write_text("{")
    expected = {"empty": "no result.json", "twice": "same run", "lacking": "usable value", "broken": "JSON"}
    for folder, message in expected.items():
        assert message in refusal(capsys, str(tmp_path / folder))
    assert "there is no folder" in refusal(capsys, str(tmp_path / "none"))


ODD = {
    "a list": (b"[]", "holds no result"),
    "nested": (b"[" * 100_000, "is not readable JSON"),
    "binary": (b"\x80\xff", "is not readable JSON"),
    "digits": (b"9" * 5000, "is not readable JSON"),
    "not a number": (RESULT | {"value": float("nan")}, "lacks a usable value"),
    "beyond a float": (RESULT | {"value": 10**400}, "lacks a usable value"),
    "a note": (RESULT | {"split_note": 3}, "lacks a usable split_note"),
    "settings": (RESULT | {"config": []}, "lacks a usable config;"),
    "a section": (RESULT | {"config": {"adapter": 3}}, "lacks a usable config.adapter;"),
    "a rate": (RESULT | {"config": {"train": {"lr": "fast"}}}, "lacks a usable config.train.lr"),
    "no rank": (RESULT | {"config": {"adapter": {"method": "lora"}}}, "lacks a usable config.adapter.r"),
    "a scale": (RESULT | {"config": {"adapter": {"method": "lora", "r": 1, "alpha": []}}}, "config.adapter.alpha"),
}


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("case", ODD)
def test_an_odd_file_is_named_and_leaves_no_table(case, tmp_path, capsys):
    content, message = ODD[case]
    write(tmp_path / "good")
    write(tmp_path / "odd")
    path = tmp_path / "odd" / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    line = refusal(capsys, str(tmp_path), "--csv", str(tmp_path / "table.csv"))
    assert line.startswith(f"error: {path} ")
    assert message in line
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize("name", ["result.json", "failed.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_result_without_end_is_one_line(name, make, tmp_path, capsys):
    write(tmp_path / "good")
    (tmp_path / "odd").mkdir()
    make(tmp_path / "odd" / name)
    assert "delete the file or run its task again" in refusal(capsys, str(tmp_path))


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("name", ["/proc/x/y", "/proc/x", "{}", "{}/run/result.json/table", "{}/" + "a" * 300])
@pytest.mark.parametrize("flag", ["--csv", "--markdown", "--readme"])
def test_a_target_that_cannot_be_written_is_found_first(flag, name, tmp_path, capsys):
    write(tmp_path / "run")
    target = name.format(tmp_path)
    line = refusal(capsys, str(tmp_path), "--csv", str(tmp_path / "new" / "table.csv"), flag, target)
    assert f"{flag} " in line
    assert "cannot be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_readme_without_markers_is_refused_and_kept(tmp_path, capsys):
    write(tmp_path / "a")
    readme = tmp_path / "README.md"
    readme.write_text("no place\n")
    assert "results:begin" in refusal(capsys, str(tmp_path / "a"), "--readme", str(readme))
    assert readme.read_text() == "no place\n"


def shown(config: dict) -> str:
    return settings_of([RESULT | {"config": config}])


def test_settings_tell_rows_of_one_method_apart():
    adapter = {"method": "lora", "r": 8, "alpha": None}
    assert shown({"train": {"lr": 0.005}, "adapter": adapter}) == "lr 0.005, r 8, alpha 8"
    assert shown({"model": {"pretrained": False}, "adapter": adapter | {"alpha": 32}}) == (
        "random weights, r 8, alpha 32"
    )
    assert shown({"adapter": adapter | {"alpha": 32, "scaling": "stable"}}) == "r 8, alpha 32 stable"
    assert shown({"adapter": adapter | {"alpha": 32, "scaling": "alpha-r"}}) == "r 8, alpha 32"
    assert shown({"adapter": adapter | {"targets": "attention-qv"}}) == "r 8, alpha 8"
    assert shown({"adapter": adapter | {"targets": "all-linear"}}) == "r 8, alpha 8, all-linear"
    assert shown({"train": {"lr": 0.001}, "adapter": {"method": "linear", "r": 8}}) == "lr 0.001"
    assert shown({"adapter": adapter | {"targets": "fused-qkv"}}) == "r 8, alpha 8, fused-qkv"
    assert shown({"adapter": adapter | {"targets": ["a.q", "a.v"]}}) == "r 8, alpha 8, a.q a.v"
    assert shown({"adapter": adapter | {"method": "padapter", "targets": "all-linear"}}) == "r 8, alpha 8"


def rows_of(folder: Path, **configs: dict) -> dict[str, str]:
    """The settings that the table shows for each run, by the name of its folder."""
    results = {}
    for number, (name, sections) in enumerate(configs.items()):
        method = sections.pop("method", "capaboost-lora")
        write(folder / name, method=method, value=number, config={"train": {"seed": 0}} | sections)
    results = make_rows(read_results([folder]))
    return {list(configs)[int(row.mean)]: row.settings for row in results}


LORA = {"method": "lora", "r": 8, "num_tied": 2, "density": 0.5}


@pytest.mark.parametrize(
    ("section", "name", "values"),
    [
        ("adapter", "init", ("lora", "official")),
        ("train", "batch_size", (32, 16)),
        ("data", "max_length", (128, 256)),
        ("data", "normalize", ("model", "imagenet")),
        ("train", "mixed_precision", ("bf16", "no")),
        ("model", "drop_path_rate", (0.0, 0.1)),
        ("train", "max_grad_norm", (None, 1.0)),
        ("adapter", "num_tied", (2, 4)),
    ],
)
def test_what_differs_between_two_rows_is_shown_in_both(section, name, values, tmp_path):
    runs = {key: {"adapter": dict(LORA)} for key in ("first", "second")}
    for run, value in zip(runs.values(), values, strict=True):
        run.setdefault(section, {})[name] = value
    shown = rows_of(tmp_path, **runs)
    for key, value in zip(runs, values, strict=True):
        assert shown[key] == f"r 8, alpha 8, {name.replace('_', ' ')} {'none' if value is None else value}"


def test_what_is_equal_or_not_comparable_is_not_shown(tmp_path):
    data, plain = {"max_length": 128}, {"num_tied": 1, "density": 1.0}
    shown = rows_of(
        tmp_path,
        ours={"adapter": LORA | {"init": "lora", "activation": "relu"}, "data": data | {"dataset": "a"}},
        plain={"method": "lora", "adapter": LORA | {"init": "lora"} | plain, "data": data},
        probe={"method": "linear", "adapter": {"method": "linear", "init": "official"}, "data": data},
    )
    assert shown == {"ours": "r 8, alpha 8", "plain": "r 8, alpha 8", "probe": ""}
