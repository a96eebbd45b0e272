"""What a training command says and how it exits when input, folder or disk fail, in one process and in two."""

import json
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests import commands
from tests.commands import ROOT, finish, torchrun

TINY = ["--model", "test_vit", "--set", "model.pretrained=false", "--batch-size", "8", "--mixed-precision", "no"]
TINY += ["--set", "model.img_size=32"]
DIGITS = ["tools/train_vtab.py", "--dataset", "digits", "--source", "digits", *TINY]


@pytest.fixture
def images(tmp_path):
    """A folder source whose last test image, of the share of the second process, cannot be read."""
    task = tmp_path / "data" / "shapes"
    (task / "images").mkdir(parents=True)
    for index in range(16):
        pixels = np.full((16, 16, 3), 16 * index, np.uint8)
        Image.fromarray(pixels).save(task / "images" / f"{index}.png")
    rows = [f"images/{index}.png {index % 2}" for index in range(16)]
    for split, part in {
        "train800": rows[:8],
        "val200": rows[8:10],
        "train800val200": rows[:10],
        "test": rows[10:],
    }.items():
        (task / f"{split}.txt").write_text("\n".join(part) + "\n")
    (task / "images" / "15.png").write_bytes(b"\x89PNG broken")
    return ["--dataset", "shapes", "--source", "folder", "--data-dir", str(tmp_path / "data"), *TINY, "--epochs", "1"]


def errors(text: str) -> list[str]:
    """Lines of stderr that tell a mistake, as a log holds them."""
    return [line for line in text.split("\n") if "error:" in line]


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_that_one_process_cannot_read_is_one_line(images, tmp_path, processes):
    start = commands.start if processes == 1 else torchrun
    process = start("tools/train_vtab.py", *images, "--output-dir", str(tmp_path / "out"))
    _, err = process.communicate(timeout=400)
    assert process.returncode == (2 if processes == 1 else 1)  # torchrun's own
    told = [line for line in errors(err) if "15.png" in line]
    assert len(told) == 1
    assert told[0].startswith("error: ")
    assert "is not a readable image; replace it or drop its line" in told[0]
    assert err.count("Traceback") == processes - 1  # torchrun's own
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.hard_case("messages")
def test_a_file_that_cannot_grow_is_one_line(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # the command inherits it
    try:
        process = commands.start(*DIGITS, "--epochs", "1", "--output-dir", str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 2, err
    assert len([line for line in err.split("\n") if line.startswith("error: ")]) == 1
    assert "Traceback" not in err


def test_a_stopped_command_saves_and_says_how_to_go_on(tmp_path):
    command = [*DIGITS, "--epochs", "2", "--output-dir", str(tmp_path / "out")]
    process = commands.start(*command)
    time.sleep(1)
    while process.poll() is None and not (tmp_path / "out" / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 143, err
    stops = [line for line in err.split("\n") if line.startswith("stopped by SIGTERM")]
    assert len(stops) == 1
    assert not (tmp_path / "out" / "run.lock").exists()
    assert "going on after epoch" in finish(commands.start(*command, "--resume"))
    assert json.loads((tmp_path / "out" / "result.json").read_text())["epochs"] == 2


@pytest.mark.hard_case("messages")
def test_a_reader_that_goes_away_is_no_error():
    """As in `capaboost tables ... | head -1`."""
    script = "from capaboost.exit_code import exit_code_of\nimport sys\n"
    script += "sys.exit(exit_code_of(lambda: [print('line', flush=True) for _ in range(100000)], 'stopped'))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("command", ["tables none", "sweep none", "flops --model none"])
def test_a_mistake_is_one_line_in_a_process_of_its_own(command):
    """In a fresh interpreter, through the real entry point: without the warnings of what is imported."""
    line = [sys.executable, "-m", "capaboost", *command.split()]
    made = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert (made.returncode, made.stdout) == (2, "")
    assert len(made.stderr.splitlines()) == 1, made.stderr
    assert made.stderr.startswith("error: ")
