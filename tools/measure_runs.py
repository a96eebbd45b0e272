"""What runs on rendered tasks forget, and whether their methods err on different images.

    python tools/measure_runs.py runs/sweeps/evidence-b-main runs/sweeps/evidence-b-masks --beside lora-r8 \
        --images DATA/upstream --output results/evidence/errors.json

Forgetting: the accuracy on the 5,000 images of 200 classes that the embedded backbone was validated on, with the
pretrained head and at 64 px, less that with the adapter of a run in place. Errors: of the test images that the run or
the one beside it gets wrong, the share that both get wrong; and what the mean of their probabilities gains over the
better one of the two. Beside a run is that of the next seed by the method beside, and so beside one of that method:
two seeds of one method are what the others are measured by.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout that is not installed

from capaboost import load_run
from capaboost.command_line import at_least_one
from capaboost.exit_code import exit_code_of
from capaboost.inference import ImageRun
from capaboost.training.result import command_line, git_state, read_result, surroundings
from capaboost_core import UserError
from capaboost_core.files import write_atomically
from capaboost_core.injection import find_injection
from capaboost_vision.backbone import EMBEDDED
from capaboost_vision.timm_register import inject
from capaboost_vision.vtab.sources import decode, open_split
from tools.pretrain_backbone import image_files, load_split, top1

CPU = torch.device("cpu")
LEAST = 2  # seeds of the method beside


@dataclass(frozen=True)
class Measured:
    """Of one run; all but the names in percent or points.

    Attributes:
        forgetting: Accuracy on the backbone's own images before, less after; None where it was not asked for.
        both_wrong: Of the test images that this or the run beside gets wrong, those that both do.
        gain: Accuracy of the mean of both less the better one's.
        beside: The method of the run beside.
    """

    task: str
    method: str
    seed: int
    beside: str
    forgetting: float | None
    both_wrong: float
    gain: float


@cache
def probabilities(folder: Path) -> tuple[Tensor, Tensor]:
    """(images, classes) on the task's test rows, and their labels."""
    config, run = read_result(folder / "result.json")["config"], load_run(folder)
    if not isinstance(run, ImageRun):
        raise UserError(f"{folder} is no run on images; give sweeps on rendered tasks")
    images, labels = _test_rows(config["data"]["dataset"], run.size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (run.mean, run.std))
    parts = [run.model((batch.float() / 255 - mean) / std).float().softmax(-1) for batch in images.split(250)]
    return torch.cat(parts), labels


@cache
def _test_rows(task: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return decode(open_split(task, "rendered", None, "test", size), "test")


def with_own_head(folder: Path) -> nn.Module:
    """The pretrained backbone of 200 classes at 64 px, with all that the run trained but its head."""
    adapted = load_run(folder).model
    injection = find_injection(adapted)
    assert injection
    model = inject(timm.create_model(EMBEDDED, pretrained=True), injection.config)
    state = {
        name: value for name, value in adapted.state_dict().items() if not name.startswith(("head.", "pos_embed"))
    }
    keys = model.load_state_dict(state, strict=False)
    lacking = [name for name in keys.missing_keys if not name.startswith(("head.", "pos_embed"))]
    if unlike := keys.unexpected_keys + lacking:
        raise UserError(
            f"{folder}: {unlike[0]} is in one of the run and the backbone alone; measure runs of {EMBEDDED}"
        )
    return model


def compared(first: Path, second: Path) -> tuple[float, float]:
    """(both wrong, gain) of two runs on one task, in percent."""
    (one, labels), (other, _) = probabilities(first), probabilities(second)
    right = [of.argmax(-1) == labels for of in (one, other, one + other)]
    wrong = ~right[0], ~right[1]
    both = (wrong[0] & wrong[1]).sum() / (wrong[0] | wrong[1]).sum().clamp(min=1)
    best, mean = max(right[0].float().mean(), right[1].float().mean()), right[2].float().mean()
    return 100 * float(both), 100 * float(mean - best)


def runs_of(sweeps: list[Path]) -> Iterator[tuple[str, str, dict[int, Path]]]:
    """Task, method and the folder of each seed.

    Raises:
        UserError: If one is no folder.
    """
    if missing := [sweep for sweep in sweeps if not sweep.is_dir()]:
        raise UserError(f"there is no folder {missing[0]}; give what `capaboost sweep` wrote")
    for method in sorted({path.parents[1] for sweep in sweeps for path in sweep.glob("*/*/seed*/result.json")}):
        folders = [path.parent for path in method.glob("seed*/result.json")]
        yield method.parent.name, method.name, {int(path.name.removeprefix("seed")): path for path in folders}


def pairs(sweeps: list[Path], beside: str, seeds: int) -> Iterator[tuple[str, str, int, Path, Path]]:
    """Task, method, seed and folder of each run of the first seeds, and the folder of the run beside it.

    Raises:
        UserError: If two sweeps have a method on one task, or the method beside did not run on a task, or with fewer
            than two seeds.
    """
    listed = list(runs_of(sweeps))
    if twice := [of for of, count in Counter((task, method) for task, method, _ in listed).items() if count > 1]:
        raise UserError("two sweeps have {1} on {0}; give one of them".format(*twice[0]))
    reference = {task: folders for task, method, folders in listed if method == beside}
    for task, method, folders in listed:
        order = sorted(reference.get(task, {}))
        if len(order) < LEAST:
            raise UserError(f"{beside} has {len(order)} runs on {task}, of two that it takes; give its sweep, too")
        following = dict(zip(order, order[1:] + order[:1], strict=True))
        for seed in [seed for seed in order if seed in folders][:seeds]:
            yield task, method, seed, folders[seed], reference[task][following[seed]]


@torch.inference_mode()
def measure(sweeps: list[Path], beside: str, images: Path | None, seeds: int) -> list[Measured]:
    """Every run of the first seeds.

    Raises:
        UserError: If the method beside did not run on a task, or a run is not what can be measured.
    """
    found = list(pairs(sweeps, beside, seeds))
    own = load_split([image_files(images)[1]], Path("runs/backbone/val.npz")) if images else None
    before = top1(timm.create_model(EMBEDDED, pretrained=True), *own, CPU) if own else 0.0
    measured = []
    for task, method, seed, folder, other in found:
        forgotten = 100 * (before - top1(with_own_head(folder), *own, CPU)) if own else None
        measured.append(Measured(task, method, seed, beside, forgotten, *compared(folder, other)))
        print(measured[-1], flush=True)
    return measured


def main(arguments: list[str] | None = None) -> int:
    title, _, details = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        description=title, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sweeps", nargs="+", type=Path, metavar="SWEEP", help="folders of sweeps on rendered tasks")
    add("--beside", required=True, metavar="METHOD", help="the method that the others are held beside")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder with the backbone's own val.parquet; without it no forgetting",
    )
    add("--seeds", type=at_least_one, default=4, metavar="N", help="the first seeds of each method (default: 4)")
    add("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)

    def run() -> None:
        rows = [asdict(row) for row in measure(options.sweeps, options.beside, options.images, options.seeds)]
        record = {"command": command_line(), "git": git_state(), **surroundings(CPU), "rows": rows}
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(options.output, lambda file: file.write(text.encode()))

    return exit_code_of(run, "nothing was written")


if __name__ == "__main__":
    raise SystemExit(main())
