"""All that a GPU can tell, in order of value and within a time limit: tests, benchmarks, a longer pretraining, sweeps.

    python tools/measure_gpu.py --time 25m --data-dir data/upstream
    python tools/measure_gpu.py --time 10m --device cpu --quick    # a rehearsal without a GPU

The same command goes on where an earlier one ended: a stage that is done is not run again, and sweeps and pretraining
continue from their checkpoints. All results, which name the device, lie below the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # of a checkout that is not installed

from capaboost.command_line import exit_code  # noqa: E402

MODELS = ("vit-base", "roberta-base", "vit-small")
FEW = ("--peers", "capaboost-d2", "peft", "floor")  # since each peer is compiled by itself, which takes long
MODES = {"eager": (), "compiled": (*FEW, "--compile"), "graphs": (*FEW, "--compile", "reduce-overhead")}
SWEEPS = ("bench", "methods", "scale")  # in order of value
STOP_SECONDS = 30  # to finish a step and save
SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Stage:
    """A command of its own, and the most minutes it may take."""

    name: str
    command: tuple[str, ...]
    minutes: float


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--time", type=duration, default="25m", metavar="T", help="limit of all stages, such as 90s, 25m or 2h")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal (default: cuda)")
    add("--quick", action="store_true", help="tiny sizes, whose figures mean nothing")
    add("--data-dir", type=Path, metavar="DIR", help="Tiny ImageNet as Parquet, to pretrain; left out without it")
    add("--output-dir", type=Path, default=Path("runs/gpu"), metavar="DIR", help="default: runs/gpu")
    return parser.parse_args(arguments)


def duration(text: str) -> float:
    """Seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; type for example 90s, 25m or 2h")
    return float(match[1]) * SECONDS[match[2]]


def stages(options: argparse.Namespace) -> list[Stage]:
    """What is run, in order: whether it is right, how fast it is, then evidence."""
    out, quick = options.output_dir, ("--quick",) if options.quick else ()
    tests = ("-m", "pytest", "tests/gpu", "-q", "--device", options.device, f"--junitxml={out / 'tests.xml'}")
    bench = ("--device", options.device, "--results", str(out / "benchmarks"), *quick)
    found = [Stage("tests", tests, 5)]
    for mode, flags in MODES.items():
        for model in MODELS:
            for what in ("step", "inference"):
                command = ("-m", f"benchmarks.{what}", "--model", model, "--minutes", "1", *flags, *bench)
                found.append(Stage(f"{what}-{model}-{mode}", command, 4))
    found += [
        Stage(what, ("-m", f"benchmarks.{what}", *bench), 3)
        for what in ("whole_run", "masks", "sparse")
        if what != "sparse" or options.device == "cuda"  # it needs sparse tensor cores
    ]
    if options.data_dir:
        paths = ("--data-dir", str(options.data_dir), "--output-dir", str(out / "backbone"))
        found.append(Stage("pretrain", ("tools/pretrain_backbone.py", *paths, "--epochs", "60"), 8))
    for name in SWEEPS:
        flags = ("--output-dir", str(out / "sweeps" / name), "--workers", "1" if options.device == "cpu" else "4")
        found.append(Stage(f"sweep-{name}", ("-m", "capaboost", "sweep", name, *flags), 0.5 if options.quick else 60))
    return found


def run_stages(found: list[Stage], out: Path, seconds: float, device: str) -> list[dict]:
    """Run what is not done until the time is over; each attempt is a line of stages.jsonl.

    Returns:
        The attempts of this call.
    """
    record, end = out / "stages.jsonl", time.monotonic() + seconds
    (out / "logs").mkdir(parents=True, exist_ok=True)
    lines = record.read_text().splitlines() if record.exists() else []
    over = {tuple(line["command"]) for line in map(json.loads, lines) if line["state"] == "done"}
    attempts = []
    for number, stage in enumerate(found, 1):
        left = end - time.monotonic()
        if stage.command in over or left <= 0:
            continue
        print(f"[{number}/{len(found)}] {stage.name}: {left / 60:.0f} min left", flush=True)
        attempts.append(attempt(stage, out / "logs" / f"{stage.name}.log", min(left, 60 * stage.minutes), device))
        with open(record, "a", encoding="utf-8") as file:
            file.write(json.dumps(attempts[-1]) + "\n")
    return attempts


def attempt(stage: Stage, log: Path, seconds: float, device: str) -> dict:
    """Run one stage; at its limit it is asked to stop, which lets it save."""
    began = time.monotonic()
    here = os.environ | {"PYTHONPATH": str(ROOT)} | ({"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {})
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, *stage.command], stdout=file, stderr=subprocess.STDOUT, env=here,
                                   start_new_session=True)  # fmt: skip
        try:
            state = "done" if process.wait(timeout=seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "stopped"
        finally:
            stop(process)
    taken = round(time.monotonic() - began, 1)
    print(f"  {state} after {taken:.0f} s, {log}", flush=True)
    return {"name": stage.name, "state": state, "seconds": taken, "device": device, "command": stage.command}


def stop(process: subprocess.Popen) -> None:
    """Ask the process to end, then end all that it started."""
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(options: argparse.Namespace) -> None:
    """Run the stages, and say how they ended.

    Raises:
        UserError: If CUDA is wanted and not there, the data is not there, or a stage failed.
    """
    import torch  # here, so that --help is quick

    from capaboost_core.errors import UserError

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here; pass --device cpu --quick for a rehearsal")
    if options.data_dir and not list(options.data_dir.glob("train-*.parquet")):
        raise UserError(f"{options.data_dir} holds no train-*.parquet; give the folder of the Parquet files")
    out = options.output_dir
    attempts = run_stages(stages(options), out, options.time, options.device)
    print(f"results: {out}; {out / 'stages.jsonl'} tells how each stage ended")
    failed = [line["name"] for line in attempts if line["state"] == "failed"]
    if failed:
        raise UserError(f"{len(failed)} stages failed, first {failed[0]}; see {out / 'logs' / failed[0]}.log")


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return exit_code(lambda: measure(options), "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
