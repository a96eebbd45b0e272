"""Settings of any kind, from a YAML file, --set or flags, are used as they stand or refused in one line."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from capaboost.commands import train_glue, train_squad, train_vtab
from capaboost.training.settings import to_dict
from tests.hard.counts import count
from tests.hard.oracle import check_line, contents, scratch
from tests.hard.values import ANYTHING, NUMBERS, SCALARS, TEXTS, damaged, mutated

COMMANDS = {
    "vtab": (train_vtab, ["--dataset", "digits"]),
    "glue": (train_glue, ["--task", "rte"]),
    "squad": (train_squad, ["--dataset", "squad_v1"]),
}
KIND = st.sampled_from(sorted(COMMANDS))


class Runs(dict):
    """The default settings of each command, which a test may not go beyond."""

    def __repr__(self) -> str:
        return "defaults"


@pytest.fixture(scope="module")
def defaults() -> Iterator[Runs]:
    """Each command's settings as they are without further flags; no command trains."""
    with pytest.MonkeyPatch.context() as patch:
        for module, _ in COMMANDS.values():
            patch.setattr(module, "run_and_show", lambda _, run, options: Runs.seen.append((run, options)))
        Runs.seen = []
        yield Runs({kind: to_dict(configure(kind, [])[0]) for kind in COMMANDS})


def configure(kind: str, arguments: list[str], folder: Path | None = None):
    """The run and the options that the command makes of its arguments, or None if it refuses."""
    module, needed = COMMANDS[kind]
    Runs.seen, files, out, err = [], contents(folder), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = module.main([*needed, *arguments])
        except SystemExit as end:  # argparse shows the usage before its line
            code = end.code
            check_line(err.getvalue().rstrip("\n").rpartition(": error: ")[2])
        else:
            told = err.getvalue().split("error: ", 1)
            assert len(told) == 1 + bool(code)
            if code:
                check_line(told[1].rstrip("\n"))
    assert code in (0, 2)
    assert bool(Runs.seen) == (code == 0)
    assert contents(folder) == files
    count("refused" if code else "accepted")
    return Runs.seen[0] if Runs.seen else None


def check(run) -> dict:
    """An accepted run is plain finite values, and trains with finite rates no higher than its peak."""
    settings = to_dict(run)
    json.dumps(settings, allow_nan=False)
    assert all(math.isfinite(value) for part in settings.values() for value in part.values() if is_number(value))
    with contextlib.suppress(ValueError):  # a warm-up longer than this run, or one without schedule
        rates = [run.train.schedule_of(50)(step) for step in range(50)]
        assert all(0 <= rate <= run.train.lr for rate in rates)
    return settings


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def same(value, given) -> bool:
    """Whether a setting is what was given, and of a like kind."""
    if given is None:
        return True  # a default that follows from other settings
    if isinstance(given, bool) or isinstance(value, bool):
        return value is given or (given is False and value == "no")  # YAML's bare `no`
    if is_number(value):
        return float(given) == value
    return list(value) == list(given) if isinstance(given, (list, tuple)) else value == given


SETTINGS = """
    train.lr train.epochs train.batch_size train.seed train.weight_decay train.warmup_ratio train.warmup_steps
    train.min_lr train.warmup_lr train.schedule train.mixed_precision train.max_grad_norm
    train.gradient_accumulation_steps adapter.method adapter.r adapter.alpha adapter.num_tied adapter.density
    adapter.mask adapter.n adapter.m adapter.seed adapter.dropout adapter.init adapter.targets model.name data.dir
    data.protocol model.weights model.pretrained model.drop_path_rate data.num_classes data.normalize data.source
    data.max_length data.max_train_rows data.stride data.max_dev_rows data.task data.dataset"""
NAMES = st.sampled_from(SETTINGS.split())

PLAUSIBLE = st.sampled_from(
    [0, 1, 2, 4, 16, 0.1, 0.5, 1e-5, 1e-3, 3.0, True, False, None, "no", "nm", "lora", "linear", "test"]
)


@given(kind=KIND, name=NAMES, value=ANYTHING | PLAUSIBLE | NUMBERS)
def test_a_setting_of_any_value(defaults, kind, name, value):
    text = json.dumps(value)
    made = configure(kind, ["--set", f"{name}={text}"])
    if made:
        section, key = name.split(".")
        assert same(check(made[0])[section][key], yaml.safe_load(text)), "a setting was not used"


@given(data=st.data(), kind=KIND)
def test_settings_together(defaults, data, kind):
    """Several that the command has, each its default or another value of its kind."""
    known = [(section, key, value) for section, part in defaults[kind].items() for key, value in part.items()]
    texts = []
    for section, key, value in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=4)):
        other = PLAUSIBLE.filter(lambda new, old=value: type(new) is type(old)) if value is not None else PLAUSIBLE
        texts += ["--set", f"{section}.{key}={json.dumps(data.draw(st.just(value) | other))}"]
    made = configure(kind, texts)
    if made:
        check(made[0])


ASSIGNMENTS = st.one_of(
    st.text(max_size=12),
    st.builds("{}={}".format, NAMES, st.text(max_size=12)),
    st.builds("{}{}{}".format, NAMES, st.sampled_from(["", " ", ".", "==", "=", " = "]), TEXTS),
    st.sampled_from(["train.lr=!!python/object/apply:os.getcwd []", "train.lr=" + "[" * 3000, "train.lr=&a [*a]"]),
    st.sampled_from(["train.lr=9" + "9" * 5000, "train.lr=2001-99-99", "train.lr=.nan", "base=x", "train.base=x"]),
)


@given(kind=KIND, texts=st.lists(ASSIGNMENTS, min_size=1, max_size=2))
def test_assignments_of_any_text(defaults, kind, texts):
    made = configure(kind, [f"--set={text}" for text in texts])
    if made:
        check(made[0])


@given(data=st.data(), kind=KIND)
def test_a_file_with_anything_anywhere(defaults, data, kind):
    settings = data.draw(mutated(defaults[kind], most=3, new=ANYTHING | PLAUSIBLE))
    with scratch() as folder:
        (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")
        made = configure(kind, ["--config", str(folder / "run.yaml")], folder)
    if made:
        check(made[0])


@given(data=st.data(), kind=KIND)
def test_a_damaged_file(defaults, data, kind):
    content = yaml.safe_dump(dict(defaults[kind])).encode()
    with scratch() as folder:
        (folder / "run.yaml").write_bytes(data.draw(damaged(content)))
        made = configure(kind, ["--config", str(folder / "run.yaml")], folder)
    if made:
        check(made[0])


@given(
    kind=KIND,
    text=st.one_of(st.text(max_size=40), TEXTS, st.sampled_from(["[" * 3000, "base: run.yaml", "base: .", "base: 3"])),
)
def test_a_file_of_any_text(defaults, kind, text):
    with scratch() as folder:
        (folder / "run.yaml").write_text(text, encoding="utf-8")
        made = configure(kind, ["--config", str(folder / "run.yaml")], folder)
    if made:
        check(made[0])


FLAGS = """--method --epochs --batch-size --lr --seed --mixed-precision --model --data-dir --protocol
--lr-grid --config --weights --normalize --source --dataset --task --sed --"""
WORDS = st.one_of(
    SCALARS.map(str).filter(lambda text: "\0" not in text),
    st.sampled_from(
        ["capaboost-lora", "prefix", "full", "1e-3,1e-2", "select", "test", "no", "digits", "0x10", "1_0"]
    ),
)


@given(kind=KIND, flags=st.lists(st.tuples(st.sampled_from(FLAGS.split()), WORDS), min_size=1, max_size=3))
def test_flags_of_any_value(defaults, kind, flags):
    made = configure(kind, [part for flag, word in flags for part in ([f"{flag}={word}"] if flag != "--" else [word])])
    if made:
        settings = check(made[0])
        last = dict(flags)
        for flag, name in (("--seed", "seed"), ("--epochs", "epochs"), ("--batch-size", "batch_size")):
            if flag in last:
                assert settings["train"][name] == int(last[flag])
