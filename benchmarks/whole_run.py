"""Images per second of a whole training run, compared with the bare training step and an ordinary training loop.

  whole run      capaboost.training.loop.fit on capaboost_vision's task: images on the device, progress bar,
                 metrics, a checkpoint after each epoch; timed from its first step to its last checkpoint
  training part  the same run without what comes after the last step of an epoch
  bare step      forward, backward and AdamW over and over on one batch that is there already
  ordinary way   a DataLoader with workers that resize each image anew, a copy to the device for each
                 batch, and the loss read after each step

Examples:
  python -m benchmarks.whole_run
  python -m benchmarks.whole_run --model vit_base_patch16_224 --epochs 5     # on a GPU
"""

from __future__ import annotations

import argparse
import os
import sys

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch.utils.data import Subset

from benchmarks.command import Measured, finish, make_parser, prepare, repeats_of, run_command
from benchmarks.timing import Pair, interleave
from benchmarks.training_ways import DigitsRun, WholeRun, bare_step, ordinary_way
from capaboost.training.settings import TrainSection
from capaboost_core import UserError
from capaboost_vision.vtab.sources import decode, open_split

EMBEDDED = "capaboost_vit_micro_patch8_64"
PAIRS = [
    Pair("whole run", "bare step", low=0.95),
    Pair("training part", "bare step"),
    Pair("whole run", "ordinary way"),
]


def make_run(options: argparse.Namespace, device: torch.device) -> DigitsRun:
    """Decode the digits once, at the model's input size.

    Raises:
        UserError: If a flag is wrong.
    """
    if options.workers < 0:
        raise UserError(f"--workers is {options.workers}; type 0 or more")
    if options.model not in timm.list_models():
        raise UserError(f"timm has no model {options.model!r}; type a name of timm.list_models()")
    size = resolve_model_data_config(timm.create_model(options.model))["input_size"][-2:]
    images = open_split("digits", "digits", None, "train800val200", size)
    if options.quick:
        images = Subset(images, range(32))
    precision = "bf16" if device.type == "cuda" else "no"
    settings = {"epochs": options.epochs, "batch_size": options.batch, "warmup_ratio": 0.0}
    train = TrainSection.from_dict(settings | {"mixed_precision": precision})
    return DigitsRun(options.model, device, images, decode(images, "decoding"), train)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=5)
    add = parser.add_argument
    add("--model", default=EMBEDDED, metavar="NAME", help=f"a timm name (default: {EMBEDDED})")
    add("--epochs", type=int, default=2, metavar="N", help="of 1,000 images (default: 2)")
    add("--batch", type=int, default=64, metavar="N", help="default: 64")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="default: one a core, to 8")
    options = parser.parse_args(arguments)
    device = prepare(options)
    if options.quick:
        options.epochs, options.batch, options.workers = 1, 16, 1
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    run = make_run(options, device)
    whole = WholeRun(run)
    measures = {"whole run": whole, "bare step": bare_step(run), "ordinary way": ordinary_way(run, options.workers)}
    values = interleave(measures, repeats_of(options))
    values["training part"] = whole.training_part[options.warmups :]
    settings = {name: getattr(options, name) for name in ("model", "epochs", "batch", "workers")}
    settings["precision"] = "bf16" if device.type == "cuda" else "fp32"
    finish(options, device, Measured("whole_run", options.model, "images/s", values, {}, PAIRS, settings))


if __name__ == "__main__":
    sys.exit(run_command(main))
