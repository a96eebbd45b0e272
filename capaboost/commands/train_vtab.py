"""Fine-tune a timm ViT on a VTAB-1k task, or on a folder of images of your own.

Examples:
  accelerate launch -m capaboost train-vtab --dataset dtd
  capaboost train-vtab --dataset digits --model capaboost_vit_micro_patch8_64 --epochs 20
  capaboost train-vtab --dataset dsprites_loc --source rendered --model capaboost_vit_micro_patch8_64
  capaboost train-vtab --dataset cifar --source folder --data-dir vtab-1k --method lora --seed 1
  capaboost train-vtab --data photos/ --model capaboost_vit_micro_patch8_64
  capaboost train-vtab --dataset dtd --set adapter.r=16 --set adapter.num_tied=4 --set train.lr=3e-4

The data of VTAB-1k are prepared once, by `capaboost prepare-vtab dtd` (docs/vtab.md).

--data takes a folder with a folder of images for each class, the same below train/ and val/ (and test/), or a
CSV file with the columns path and label; without val/ or test/ a fifth of each class is held out to measure on.

Settings come from configs/vtab/<dataset>.yaml, or from configs/vtab/_base.yaml for a dataset without a
file, or from --config; flags replace them, and --set replaces anything. The sections are model, data,
train and adapter. A run leaves metrics.jsonl, TensorBoard logs, checkpoint.pt, adapter/ and result.json
in its output folder; a run that was stopped continues bit-identically with the same command and --resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from capaboost.command_line import (
    FLAGS,
    add_run_flags,
    exit_code,
    flag_settings,
    given,
    load_typed,
    make_parser,
    run_and_show,
)
from capaboost_core.errors import UserError

if TYPE_CHECKING:
    from capaboost.runs.settings import VtabRun
    from capaboost.training.settings import Raw

GRID = "1e-4,3e-4,1e-3,3e-3"


def vtab_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog, add_help=False)
    add_data_flags(parser)
    add_run_flags(parser, GRID, "runs/vtab/<dataset>/<model>/<method>-seed<seed>", "capaboost.runs.settings.VtabRun")
    return parser


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of images and model."""
    add = parser.add_argument
    add("--dataset", type=given, metavar="NAME", help="a VTAB-1k task such as dtd, digits, a rendered task such "
        "as shapes_joint, or a folder's name")  # fmt: skip
    add(
        "--source",
        choices=("tfds", "folder", "images", "digits", "rendered"),
        help="where images come from (default: the config's)",
    )
    add("--data", type=given, metavar="PATH", help="images of your own: a folder of class folders, or a CSV of paths "
        "and labels")  # fmt: skip
    add("--data-dir", type=given, metavar="DIR", help="folder of the tfds data, or of the task folders")
    add("--protocol", choices=("test", "select"), help="test: train on all 1,000 images, test after the last epoch; "
        "select: train on 800, test the epoch that is best on the other 200")  # fmt: skip
    add("--normalize", choices=("auto", "imagenet", "model", "none"), help="pixel statistics (default: "
        "auto, that is imagenet's, as in the paper, but the embedded backbone's own)")  # fmt: skip
    add("--augment", nargs="?", const="basic", type=given, metavar="POLICY", help="crop and mirror training images "
        "anew in each epoch; POLICY is one of timm's, such as rand-m9-mstd0.5-inc1 (default: no change)")  # fmt: skip
    add("--model", type=given, metavar="NAME", help="a timm name (default: vit_base_patch16_224.orig_in21k)")
    add(
        "--weights", type=given, metavar="FILE", help="pretrained weights from a .safetensors, .pth, .bin or .npz file"
    )


def load(options: argparse.Namespace) -> VtabRun:
    """The settings of the file, the flags and `--set`.

    Raises:
        UserError: If one is wrong.
    """
    return load_typed("train-vtab", _flags(options), options)


def _flags(options: argparse.Namespace) -> Raw:
    own = {name: f"data.{name}" for name in ("dataset", "source", "normalize", "augment")}
    return flag_settings(_with_own_data(options), FLAGS | own | {"weights": "model.weights"})


def check_there(options: argparse.Namespace) -> None:
    """Refuse a set of VTAB-1k that is not prepared, and images of one's own that are missing or in no such layout.

    What is missing is said before torch is imported for the other settings.

    Raises:
        UserError: With what to type instead.
    """
    from capaboost.runs.trainings import TRAININGS
    from capaboost.runs.vtab1k import check_prepared

    data = TRAININGS["train-vtab"].data(_flags(options), options.method, options.set, options.config)
    if data.source == "tfds":
        check_prepared(data.dataset, data.dir)
    if data.source == "images" and data.dir:
        if not Path(data.dir).exists():
            raise UserError(f"there is no {data.dir}; give --data the folder of your class folders, or a CSV file")
        from capaboost_vision.vtab.own import read_own

        read_own(Path(data.dir), data.holdout, data.split_seed)


def _with_own_data(options: argparse.Namespace) -> argparse.Namespace:
    """The flags with `--data photos/` as source images, that folder, and a task of its name."""
    if options.data is None:
        return options
    for flag in ("source", "data_dir"):
        if getattr(options, flag) is not None:
            raise UserError(f"--data is given beside --{flag.replace('_', '-')}; drop one of them")
    named = options.dataset or Path(options.data).resolve().stem
    return argparse.Namespace(**vars(options) | {"source": "images", "data_dir": options.data, "dataset": named})


def train(options: argparse.Namespace) -> None:
    """Run it, and show the result."""
    if not options.print_config:
        check_there(options)
    run_and_show("train-vtab", load(options), options)


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    parser = vtab_parser(prog)
    options = parser.parse_args(arguments)
    if not (options.dataset or options.config or options.data):
        parser.error(
            "give --dataset NAME, such as --dataset dtd, --data FOLDER with images of your own, or --config FILE"
        )
    return exit_code(lambda: train(options))
