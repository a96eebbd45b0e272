"""Comparisons: methods beside each other, paired by seed; what lacks is named, and only like is compared."""

import csv
import itertools
import json
import re
from pathlib import Path

import pytest
from scipy import stats

from capaboost.commands import tables
from capaboost.tables.compare import MAX_COLUMNS, compare
from capaboost.tables.groups import group_runs, label_groups, natural_order
from capaboost.tables.read import read_results
from capaboost.tables.rows import CAPABOOST_TASKS, vtab_means
from capaboost.tables.statistics import judge
from capaboost.tables.write import escape
from tests.run_results import FACT, LORA, ORDER, TIED, write_run


def made(folder: Path, *flags: str) -> dict[str, str]:
    """The texts of all formats, by format."""
    paths = {kind: folder / f"out.{kind}" for kind in ("markdown", "csv", "latex")}
    flags = (*flags, *(() if "--latex-style" in flags else ("--latex-style", "differences")))
    assert tables.main([str(folder), *flags, *(f"--{kind}={path}" for kind, path in paths.items())]) == 0
    return {kind: path.read_text() for kind, path in paths.items()}


def records(folder: Path, reference: str) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of the CSV file by task and method."""
    lines = csv.DictReader(made(folder, "--compare", reference)["csv"].splitlines())
    return {(line["task"], line["method"]): line for line in lines}


def labels(folder: Path) -> set[str]:
    return set(label_groups(group_runs(read_results([folder]))).values())


def refusal(capsys, *arguments: str) -> str:
    assert tables.main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def study(tmp_path) -> Path:
    """Two tasks; the tied method lacks a seed of the first and all of the second."""
    for seed, value in {42: 90.0, 43: 91.0, 44: 95.0}.items():
        write_run(tmp_path / "digits" / "lora", seed, value, task="digits")
        write_run(tmp_path / "dtd_1" / "lora", seed, value - 20, task="dtd_1")
    for seed, value in {44: 98.0, 42: 91.0}.items():  # +3 and +1
        write_run(tmp_path / "digits" / "tied", seed, value, TIED, task="digits")
    write_run(tmp_path / "dtd_1" / "linear", 43, 60.0, {"method": "linear"}, task="dtd_1")  # -11
    return tmp_path


def test_raw_numbers(study):
    cells = records(study, "lora")
    tied = cells["digits", "capaboost-lora"]
    half = 12.7062047 * 2**0.5 / 2**0.5  # t of 1 degree of freedom; 1 and 3 deviate by sqrt(2)
    assert [float(tied[name]) for name in ("difference", "low", "high", "pairs", "mean", "seeds")] == pytest.approx(
        [2, 2 - half, 2 + half, 2, 94.5, 2]
    )
    assert (tied["missing_seeds"], tied["best"], cells["digits", "lora"]["best"]) == ("43", "True", "False")
    linear = cells["dtd_1", "linear"]
    assert (linear["difference"], linear["low"], linear["pairs"], linear["std"]) == ("-11.0", "", "1", "")
    absent = cells["dtd_1", "capaboost-lora"]
    assert (absent["seeds"], absent["mean"], absent["missing_seeds"]) == ("0", "", "42 43 44")
    assert cells["dtd_1", "lora"]["difference"] == ""


def test_of_perplexity_the_lowest_mean_is_best(study, tmp_path):
    for path in study.rglob("result.json"):
        path.write_text(path.read_text().replace('"accuracy"', '"perplexity"'))
    cells = records(study, "lora")
    assert (cells["digits", "capaboost-lora"]["best"], cells["digits", "lora"]["best"]) == ("False", "True")
    assert cells["dtd_1", "linear"]["best"] == "True"
    _, lines = paper(study)
    best = {line[0]: [cell for cell in line if "textbf" in cell] for line in lines[1:]}
    assert best == {"lora": ["\\textbf{92.00}"], "capaboost-lora": [], "linear": ["\\textbf{60.00}$^\\dagger$"]}


def test_every_format_shows_best_differences_and_what_is_missing(study, capsys):
    texts = made(study, "--compare", "lora")
    texts["terminal"] = capsys.readouterr().out
    for text in texts["markdown"], texts["terminal"], texts["latex"].replace("$-$", "−").replace(r"\_", "_"):
        assert "+2.00 [−10.71, +14.71] (2 pairs)" in text
        assert "−11.00 (1 pair, no interval)" in text
        assert "Missing runs of capaboost-lora: digits (seed 43), dtd_1 (seeds 42, 43, 44)." in text
        assert "Missing runs of linear: digits (seeds 42, 43, 44), dtd_1 (seeds 42, 44)." in text
        assert "Settings of capaboost-lora: lr 0.005, r 8, alpha 16." in text
    titles, _, digits, dtd = texts["markdown"].splitlines()[:4]
    assert titles == "| task | metric | seeds | lora | capaboost-lora | linear |"
    assert digits.startswith("| digits | accuracy | 3 | 92.00 ± 2.65 | **94.50 ± 4.95 (2 of 3 seeds)**<br>")
    assert "| **72.00 ± 2.65** | missing | 60.00 (1 of 3 seeds)<br>" in dtd
    assert "94.50 ± 4.95 (2 of 3 seeds) *" in texts["terminal"]


def test_many_methods_are_lines_with_the_best_first(tmp_path):
    for r in range(1, MAX_COLUMNS + 2):  # r is the value on the first task, and its settings
        adapter = {**LORA, "r": r}
        for seed in (42, 43):
            write_run(tmp_path / f"a{r}", seed, r, adapter, task="a")
        if r != MAX_COLUMNS + 1:
            write_run(tmp_path / f"b{r}", 42, 10 * r, adapter, task="b")
    head, _, *lines = made(tmp_path, "--compare", "lora (r 3)")["markdown"].splitlines()
    assert head == "| method | settings | trainable | a (accuracy) | b (accuracy) |"
    rows = [line for line in lines if line.startswith("| lora")]
    order = [*range(MAX_COLUMNS, 0, -1), MAX_COLUMNS + 1]  # which lacks a task
    assert [line.split(" | ")[0] for line in rows] == [f"| lora (r {r})" for r in order]
    assert rows[0].endswith(
        f"| {MAX_COLUMNS}.00 ± 0.00<br>+9.00 [+9.00, +9.00]<br>differs | **120.00**<br>+90.00 (1 pair, no interval) |"
    )
    assert rows[-1].endswith(f"| **{MAX_COLUMNS + 1}.00 ± 0.00**<br>+10.00 [+10.00, +10.00]<br>differs | missing |")
    notes = [line for line in lines if line.startswith("- ")]
    assert not any("Settings of" in note for note in notes)
    assert f"Missing runs of lora (r {MAX_COLUMNS + 1})" in notes[-1]


@pytest.mark.parametrize("agree", [True, False])
def test_orders_that_do_not_agree_are_not_averaged(agree, tmp_path):
    for r in range(1, MAX_COLUMNS + 2):
        other = r if agree else (5 * r) % (MAX_COLUMNS + 1)
        for seed in (42, 43):
            write_run(tmp_path / f"b{r}", seed, r, {**LORA, "r": r}, task="b")
        write_run(tmp_path / f"a{r}", 42, 10 * other, {**LORA, "r": r}, task="a")
    lines = made(tmp_path, "--compare", "lora (r 3)")["markdown"].splitlines()
    order = [line.split(" | ")[0] for line in lines if line.startswith("| lora")]
    assert order == [f"| lora (r {r})" for r in range(MAX_COLUMNS + 1, 0, -1)]  # of b, which has more runs
    (note,) = [line for line in lines if "Order of lines" in line]
    rho = stats.spearmanr(
        range(1, MAX_COLUMNS + 2), [r if agree else (5 * r) % (MAX_COLUMNS + 1) for r in range(1, MAX_COLUMNS + 2)]
    )[0]
    by = "the mean over tasks" if agree else "b alone, since tasks do not agree on an order"
    assert note == f"- Order of lines: by {by}. Rank correlation (Spearman): a and b {rho:.2f}."


def test_verdicts_are_in_every_format(tmp_path):
    """Five seeds: one method far above, one equal, one that scatters."""
    lora = [80.0, 82.0, 81.0, 83.0, 79.0]
    shifts = {8: [0.0] * 5, 16: [9.0, 9.5, 8.5, 9.2, 8.8], 32: [0.1, -0.1, 0.2, 0.0, -0.2], 64: [3, -3, 2, 0, -1]}
    for r, shift in shifts.items():
        for seed, (value, more) in enumerate(zip(lora, shift, strict=True)):
            write_run(tmp_path / f"{r}", seed, value + more, {**LORA, "r": r})
    texts = made(tmp_path, "--compare", "lora (r 8)")
    verdicts = judge({str(r): shift for r, shift in shifts.items() if r != 8})
    assert [str(verdicts[r]) for r in ("16", "32")] == ["differs", "equivalent within 1"]
    for r, verdict in verdicts.items():
        cell = next(row for row in csv.DictReader(texts["csv"].splitlines()) if row["method"] == f"lora (r {r})")
        assert f"<br>{verdict}" in texts["markdown"]
        assert cell["verdict"] == str(verdict)
        numbers = [float(cell[name]) for name in ("holm_low", "holm_high", "holm_p", "equivalence_p", "pairs_needed")]
        assert numbers == pytest.approx([*verdict.interval, verdict.p, verdict.p_equivalent, verdict.needed])


def test_both_averages_of_facts_published_row():
    """Its paper says 75.6, and a user who reproduces it finds 73.0 to 73.2: two means of one row."""
    means = vtab_means(dict(zip(ORDER.split(), map(float, FACT.split()), strict=True)))
    expected = {"mean of 19": 73.23, "mean of groups": 75.55, "mean of CapaBoost's 12": 73.475}
    assert means == pytest.approx(expected, abs=0.005)


def test_tables_print_the_means_of_methods_that_have_the_tasks(tmp_path):
    for task, value in zip(ORDER.split(), FACT.split(), strict=True):
        write_run(tmp_path / task, 42, float(value), task=task)
        if task in CAPABOOST_TASKS:
            write_run(tmp_path / f"{task}-16", 42, float(value), {**LORA, "r": 16}, task=task)
    text = made(tmp_path, "--compare", "lora (r 8)")["markdown"]
    assert "VTAB-1k, lora (r 8): mean of 19 73.23, mean of groups 75.55, mean of CapaBoost's 12" in text
    assert "VTAB-1k, lora (r 16): mean of CapaBoost's 12" in text
    text = made(tmp_path)["markdown"]
    assert "test): mean of 19 73.23, mean of groups 75.55, mean of CapaBoost's 12" in text
    assert text.count("VTAB-1k, lora (") == 2


def test_lines_of_a_ranking_leave_out_what_most_methods_have(tmp_path):
    for r in range(1, MAX_COLUMNS + 2):
        path = write_run(tmp_path / f"{r}", 42, r, {**LORA, "r": r}, task="digits")
        result = json.loads(path.read_text())
        result["config"]["train"]["warmup_lr"] = 0.5 if r == 5 else 0.25
        path.write_text(json.dumps(result))
    table = made(tmp_path, "--compare", "lora (r 3)")["markdown"]
    assert "- Where a line has nothing else: warmup lr 0.25.\n" in table
    (line,) = [line for line in table.splitlines() if "warmup lr 0.5" in line]
    assert line.startswith("| lora (r 5) | lr 0.005, r 5, alpha 16, warmup lr 0.5 |")


def test_a_line_of_a_ranking_has_the_settings_of_each_task(tmp_path):
    for r in range(1, MAX_COLUMNS + 2):
        for task, lr in (("a", 0.005), ("b", 0.25 if r == 5 else 0.005)):
            write_run(tmp_path / f"{task}{r}", 42, r, {**LORA, "r": r}, task=task, lr=lr)
    texts = made(tmp_path, "--compare", "lora (r 3)")
    assert "| lora (r 5) | lr 0.005, r 5, alpha 16 (a)<br>lr 0.25, r 5, alpha 16 (b) |" in texts["markdown"]
    assert "| lora (r 4) | lr 0.005, r 4, alpha 16 |" in texts["markdown"]


def test_alpha_is_shown_of_methods_that_have_one(tmp_path):
    adapter = {"method": "adaptformer", "r": 4, "num_tied": 1, "density": 1.0}
    write_run(tmp_path, 42, 90.0, adapter, task="digits")
    assert "| lr 0.005, r 4 |" in made(tmp_path)["markdown"]


def test_latex_has_a_cell_for_each_column(study):
    text = made(study, "--compare", "lora")["latex"]
    body = text.partition("\\toprule")[2].partition("\\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert [line.count(" & ") for line in lines] == [5] * 6  # titles, three lines and two
    assert "\\begin{tabular}{llcccc}" in text
    assert "\\textbf{94.50 $\\pm$ 4.95 (2 of 3 seeds)}" in lines[1]
    assert "{\\scriptsize +2.00 [$-$10.71, +14.71] (2 pairs)}" in lines[2]
    assert "dtd\\_1" in lines[4]


def paper(folder: Path, *flags: str) -> tuple[str, list[list[str]]]:
    """The LaTeX text of a comparison, and the cells of its lines between the rules."""
    text = made(folder, "--compare", "lora", "--latex-style", *(flags or ("paper",)))["latex"]
    body = text.partition("\\toprule\n")[2].partition("\\bottomrule")[0]
    lines = [line.removesuffix(" \\\\").split(" & ") for line in body.splitlines() if line.endswith(" \\\\")]
    (columns,) = re.findall(r"\\begin{tabular}{(\w+)}", text)
    spanned = [sum(int((re.match(r"\\multicolumn{(\d+)}", cell) or [0, 1])[1]) for cell in line) for line in lines]
    assert spanned == [len(columns)] * len(lines)
    assert text.count("{") == text.count("}")
    return text, lines


def test_a_paper_has_a_line_for_each_method(study):
    write_run(study / "digits" / "linear", 42, 80.0, {"method": "linear"}, task="digits")
    text, lines = paper(study)
    assert lines == [
        ["Method", "Params (k)", "digits", "dtd\\_1", "Average"],
        ["lora", "36.9", "\\underline{92.00}", "\\textbf{72.00}", "\\textbf{82.00}"],
        ["capaboost-lora", "27.6", "\\textbf{94.50}$^\\dagger$", "--", "--"],
        ["linear", "0.0", "80.00$^\\dagger$", "60.00$^\\dagger$", "70.00"],
    ]
    assert "Fewer seeds than other methods" in text
    assert "% Missing runs of capaboost-lora: digits (seed 43)" in text
    _, lines = paper(study, "spread")
    assert lines[1][2] == "\\underline{92.00} {\\scriptsize $\\pm$ 2.65}"


def test_values_that_are_shown_alike_are_marked_alike(tmp_path):
    for r, value in enumerate((90.001, 90.004, 89.0, 88.0), start=1):
        write_run(tmp_path / str(r), 42, value, {**LORA, "method": "lora" if r == 1 else "hira", "r": r}, task="a")
    text = made(tmp_path, "--compare", "lora", "--latex-style", "paper")["latex"]
    assert text.count("\\textbf{90.00}") == 4  # of the task and of the average
    assert text.count("\\underline{89.00}") == 2


def test_tasks_of_vtab_stand_in_their_groups_with_turned_names(tmp_path):
    for i, task in enumerate(reversed(CAPABOOST_TASKS)):
        for adapter in (LORA, TIED):
            write_run(tmp_path / task / str(adapter["num_tied"]), 42, 50.0 + i, adapter, task=task)
    text, (groups, titles, *lines) = paper(tmp_path)
    assert "\\usepackage{booktabs, graphicx}" in text
    assert groups[2:-1] == [f"\\multicolumn{{{n}}}{{c}}{{{name}}}" for n, name in
                            ((5, "Natural"), (2, "Specialized"), (5, "Structured"))]  # fmt: skip
    assert "\\cmidrule(lr){3-7} \\cmidrule(lr){8-9} \\cmidrule(lr){10-14}" in text
    assert titles[2:-1] == [f"\\rotatebox{{90}}{{{escape(task)}}}" for task in CAPABOOST_TASKS]
    assert [line[-1] for line in lines] == ["\\textbf{55.50}"] * 2
    protocols = {"select": 1.0, "test": 2.0}
    for protocol, value in protocols.items():
        write_run(tmp_path / "twice" / protocol, 42, value, task="x", protocol=protocol)
    assert paper(tmp_path / "twice")[1][0][2:-1] == [f"x, {protocol}" for protocol in protocols]


def test_latex_characters_are_escaped():
    assert escape("a_b 5 % {x} & #1 $ ~ ^ \\") == (
        r"a\_b 5 \% \{x\} \& \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape("1 ± 2\n<3>") == r"1 $\pm$ 2 \textless{}3\textgreater{}"


def test_rows_can_be_latex_too(study):
    text = made(study)["latex"]
    assert "lr 0.005, r 8, alpha 16" in text
    assert text.count("\\\\\n") == 1 + 4


@pytest.mark.parametrize("field", ["model", "protocol", "metric", "split_note"])
def test_only_what_is_alike_is_paired(field, tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / "a", seed, 90.0)
        write_run(tmp_path / "b", seed, 95.0, TIED, **{field: "other"})
    table = compare(read_results([tmp_path]), "lora")
    assert len(table.tasks) == 2
    assert not [cell for cell in table.cells.values() if cell.difference]
    assert all(cell.is_best for cell in table.cells.values())
    assert not [cell for cell in table.cells.values() if cell.missing]


def test_draws_of_masks_at_one_seed_are_one_value(tmp_path):
    for mask_seed, value in enumerate((90.0, 94.0)):
        write_run(
            tmp_path / f"m{mask_seed}", 1, value, TIED | {"seed": mask_seed}, trainable_parameters=100 + mask_seed
        )
    write_run(tmp_path / "lora", 1, 91.0)
    (task,) = (table := compare(read_results([tmp_path]), "lora")).tasks
    cell = table.cells[task, "capaboost-lora"]
    assert (cell.spread.mean, cell.spread.count, cell.difference.mean) == (92, 1, 1)


def test_runs_on_other_devices_are_one_group_and_named(tmp_path):
    write_run(tmp_path / "a", 1, 90.0, device="cpu")
    write_run(tmp_path / "a", 2, 92.0, device="cuda")
    assert records(tmp_path, "lora")["digits", "lora"]["seeds"] == "2"
    assert "run on cpu, cuda." in (tmp_path / "out.markdown").read_text()


LABELS = {
    "one": ([{}], {"lora"}),
    "ranks": ([{"r": 8}, {"r": 64}], {"lora (r 8)", "lora (r 64)"}),
    "d beside plain": (
        [{}, {"num_tied": 2}, {"num_tied": 4}],
        {"lora", "capaboost-lora (d 2)", "capaboost-lora (d 4)"},
    ),
    "rates": ([{"lr": 0.005}, {"lr": 0.01}], {"lora (lr 0.005)", "lora (lr 0.01)"}),
    "alphas": ([{"alpha": 16}, {"alpha": 32.0}], {"lora (alpha 16)", "lora (alpha 32)"}),
    "rates of other ranks": ([{"r": 1, "lr": 0.01}, {"r": 8, "lr": 0.1}], {"lora (r 1)", "lora (r 8)"}),
    "rates of other tasks": ([{"lr": 0.01}, {"lr": 0.1, "task": "b"}], {"lora"}),
    "a rate of one task": (
        [{"lr": 0.01}, {"lr": 0.1}, {"lr": 0.1, "task": "b"}, {"lr": 0.5, "task": "c"}],
        {"lora (lr 0.01)", "lora (lr 0.1)", "lora"},
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_a_label_says_what_tells_methods_apart_and_no_more(case, tmp_path):
    runs, expected = LABELS[case]
    for number, changes in enumerate(runs):
        adapter = LORA | {name: value for name, value in changes.items() if name in LORA}
        fields = {name: value for name, value in changes.items() if name not in LORA}
        write_run(tmp_path / str(number), 1, 90.0, adapter, **fields)
    assert labels(tmp_path) == expected


def test_a_number_is_the_same_however_it_is_written(tmp_path):
    for seed, alpha in enumerate((16, 16.0)):
        write_run(tmp_path / "lora", seed, 90.0, LORA | {"alpha": alpha})
    assert records(tmp_path, "lora")["digits", "lora"]["seeds"] == "2"


def test_labels_are_sorted_by_their_numbers():
    assert sorted(["a (r 16)", "a (r 8)", "a (r 0.5)", "a"], key=natural_order) == [
        "a",
        "a (r 0.5)",
        "a (r 8)",
        "a (r 16)",
    ]


def write_grid(folder: Path, seed: int, values: dict[float, float]) -> None:
    """A run of `--lr-grid` as it leaves its folder: a run for each rate, and the best one's result above them."""
    for rate, value in values.items():
        path = write_run(folder / f"seed{seed}" / f"lr-{rate:g}", seed, value, lr=rate)
        path.rename(path.parents[1] / "result.json")
    best = max(values, key=values.__getitem__)
    chosen = json.loads((folder / f"seed{seed}" / f"lr-{best:g}" / "result.json").read_text())
    grid = {f"{rate:g}": value for rate, value in values.items()}
    (folder / f"seed{seed}" / "result.json").write_text(json.dumps(chosen | {"lr_grid": grid}))


def test_a_rate_selected_from_a_grid_is_one_row_that_shows_the_grid(tmp_path):
    write_grid(tmp_path, 1, {0.001: 80.0, 0.01: 90.0})
    write_grid(tmp_path, 2, {0.001: 94.0, 0.01: 85.0})
    (line,) = csv.DictReader(made(tmp_path)["csv"].splitlines())
    assert (line["mean"], line["seeds"]) == ("92.0", "2")
    assert line["settings"] == "lr 0.01 or 0.001 of {0.001, 0.01}, r 8, alpha 16"
    assert labels(tmp_path) == {"lora"}


def test_tuning_of_a_sweep_is_shown_and_its_runs_are_no_rows(tmp_path):
    """As in a sweep's folder: <task>/<method>/tune/<settings>/seed<N> beside seed<N>."""
    place, tested = tmp_path / "digits" / "lora", {"lr": 0.01, "adapter": LORA | {"alpha": 32.0}}
    for lr, alpha in itertools.product((0.001, 0.01), (16.0, 32.0)):
        tune = place / "tune" / f"lr={lr:g},alpha={alpha:g}"
        write_run(tune, 1, 99.0, LORA | {"alpha": alpha}, lr=lr, test=False, metric="selection_accuracy")
    grid = {f"lr={lr:g},alpha={alpha:g}": 99.0 for lr, alpha in itertools.product((0.001, 0.01), (16.0, 32.0))}
    for seed in (1, 2):
        tuning = {"chosen": {"train.lr": 0.01, "adapter.alpha": 32.0}, "grid": grid, "at_edge": []}
        write_run(place, seed, 90.0, **tested, tuning=tuning)
    (line,) = csv.DictReader(made(tmp_path)["csv"].splitlines())
    assert (line["mean"], line["seeds"]) == ("90.0", "2")
    assert line["settings"] == "lr 0.01 of {0.001, 0.01}, r 8, alpha 32 of {16, 32}"
    lines = list(csv.DictReader(made(place / "tune")["csv"].splitlines()))  # by itself
    assert {line["metric"] for line in lines} == {"selection_accuracy"}
    assert len(lines) == 4


def test_another_setting_that_was_tuned_is_shown_too(tmp_path):
    tuning = {"chosen": {"data.normalize": "model"}, "grid": {"normalize=model": 3.0, "normalize=imagenet": None}}
    path = write_run(tmp_path, 1, 90.0, tuning=tuning)
    result = json.loads(path.read_text())
    result["config"]["data"] = {"normalize": "model"}
    path.write_text(json.dumps(result))
    (line,) = csv.DictReader(made(tmp_path)["csv"].splitlines())
    assert line["settings"] == "lr 0.005, r 8, alpha 16, normalize model of {model, imagenet}"


def test_a_run_found_twice_is_named(tmp_path, capsys):
    first, second = (write_run(tmp_path / name, 1, 90.0) for name in "ab")
    line = refusal(capsys, str(tmp_path), "--compare", "lora", "--csv", str(tmp_path / "t.csv"))
    assert f"{second} and {first} are the same run" in line
    assert not (tmp_path / "t.csv").exists()


def test_an_unknown_method_gets_the_known_ones(study, capsys):
    line = refusal(capsys, str(study), "--compare", "bitfit", "--plots", str(study / "plots"))
    assert line == "error: --compare is 'bitfit'; give one of: capaboost-lora; linear; lora"
    assert not (study / "plots").exists()


def test_failed_runs_are_named_until_they_have_a_result(study, capsys):
    record = {"error": "out of\nmemory", "command": "capaboost train-vtab"}
    for method in ("tied", "lora"):
        folder = study / "digits" / method / "seed43"
        folder.mkdir(exist_ok=True)
        (folder / "failed.json").write_text(json.dumps(record))
    for flags in ((), ("--compare", "lora")):
        text = made(study, *flags)["markdown"]
        assert text.count("Failed: ") == 1
        assert f"- Failed: {study}/digits/tied/seed43: out of memory (capaboost train-vtab)." in text


def test_a_rate_at_which_tuning_diverged_is_no_failure(study):
    record = {"error": "the loss is not finite", "kind": "diverged", "command": "capaboost --set train.test=false"}
    for name, changes in {"tuning": {}, "tested": {"command": "capaboost"}, "broken": {"kind": "failed"}}.items():
        (study / name).mkdir()
        (study / name / "failed.json").write_text(json.dumps(record | changes))
    text = made(study)["markdown"]
    assert [name for name in ("tuning", "tested", "broken") if f"{study}/{name}: " in text] == ["tested", "broken"]


@pytest.mark.parametrize("content", ["{", "[]", '{"error": 3, "command": ""}', '{"error": "x"}'])
def test_a_malformed_record_of_a_failure_is_named(content, study, capsys):
    path = study / "failed.json"
    path.write_text(content)
    assert str(path) in refusal(capsys, str(study))


def test_a_first_task_without_the_reference_has_an_empty_line(tmp_path):
    """As in a comparison that is half done: the first task's reference has not run yet."""
    write_run(tmp_path / "digits" / "tied", 42, 91.0, TIED, task="digits")
    write_run(tmp_path / "dtd_1" / "lora", 42, 70.0, task="dtd_1")
    cells = records(tmp_path, "lora")
    assert (cells["digits", "lora"]["mean"], cells["digits", "lora"]["missing_seeds"]) == ("", "42")
    assert (cells["digits", "capaboost-lora"]["mean"], cells["digits", "capaboost-lora"]["difference"]) == ("91.0", "")
    assert cells["dtd_1", "lora"]["mean"] == "70.0"


def test_other_data_are_neither_averaged_nor_compared(tmp_path, capsys):
    for seed, (value, data) in enumerate([(100.0, "aa"), (100.0, "aa"), (30.0, "bb"), (28.0, "bb")]):
        write_run(tmp_path / "lora", seed, value, task="digits", data_hash=data)
    rows = list(csv.DictReader(made(tmp_path)["csv"].splitlines()))
    assert [(row["mean"], row["seeds"]) for row in rows] == [("100.0", "2"), ("29.0", "2")]
    assert [row["settings"].rpartition(", ")[2] for row in rows] == ["data aa", "data bb"]
    assert "different training data (aa and bb" in refusal(capsys, str(tmp_path), "--compare", "lora")


ORIGINS = {
    "commit": [{"git": {"commit": commit, "dirty": False}} for commit in ("a" * 40, "b" * 40)],
    "commit, changed": [{"git": {"commit": "a" * 40, "dirty": dirty}} for dirty in (False, True)],
    "version of torch": [{"versions": {"torch": torch}} for torch in ("2.14.0", "2.15.0")],
    "version of capaboost": [{"versions": {"capaboost": version}} for version in ("0.1.0", "0.2.0")],
    "hash of pretrained weights": [{"weights_hash": text * 16} for text in "ab"],
    "version of timm": [{"versions": {"timm": timm}} for timm in ("1.0.30", "1.0.31")],
    "number of processes": [{"processes": processes} for processes in (1, 4)],
}


@pytest.mark.parametrize("part", ORIGINS)
def test_averaged_runs_of_another_origin_are_said(tmp_path, part):
    for seed, fields in enumerate(ORIGINS[part]):
        write_run(tmp_path / "lora", seed, 90.0, task="digits", **fields)
    write_run(tmp_path / "linear", 0, 80.0, {"method": "linear"}, task="digits", **fields)
    said = f"- Runs of more than one {part.partition(',')[0]} in 1 of 2 rows, as in digits lora: "
    assert said in made(tmp_path)["markdown"]
    assert "in 1 of 1 tasks, as in digits" in made(tmp_path, "--compare", "linear")["markdown"]


def test_one_origin_and_results_without_one_are_not_said(tmp_path):
    git = {"commit": "a" * 40, "dirty": False}
    for seed, fields in enumerate([{"git": git, "data_hash": "aa"}, {"git": git, "data_hash": "aa"}]):
        write_run(tmp_path / "lora", seed, 90.0, task="digits", **fields)
    write_run(tmp_path / "linear", 0, 80.0, {"method": "linear"}, task="digits")
    write_run(tmp_path / "linear", 1, 80.0, {"method": "linear"}, task="digits", git=None, versions=[], processes=None)
    assert "more than one" not in made(tmp_path)["markdown"]


def test_linked_folders_are_read_once(tmp_path):
    write_run(tmp_path / "elsewhere" / "lora", 0, 90.0)
    write_run(tmp_path / "study" / "lora", 1, 92.0)
    (tmp_path / "study" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "study" / "again").symlink_to(tmp_path / "elsewhere" / "lora")
    (tmp_path / "study" / "here").symlink_to(tmp_path / "study")  # a loop
    assert [result["seed"] for result in read_results([tmp_path / "study"]).values()] == [0, 1]
    assert len(read_results([tmp_path])) == 2
    assert all("study/lora" in str(p) or "elsewhere/lora" in str(p) for p in read_results([tmp_path]))


def test_failures_behind_a_link_are_told(tmp_path):
    write_run(tmp_path / "study" / "lora", 1, 92.0)
    place = tmp_path / "elsewhere" / "seed7"
    place.mkdir(parents=True)
    (place / "failed.json").write_text(json.dumps({"error": "no disk", "kind": "error", "command": "capaboost"}))
    (tmp_path / "study" / "linked").symlink_to(tmp_path / "elsewhere")
    assert "no disk" in made(tmp_path / "study")["markdown"]
