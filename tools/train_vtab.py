"""Fine-tune a timm ViT on a VTAB-1k task, or on a folder of images of your own.

Examples:
  accelerate launch tools/train_vtab.py --dataset dtd
  python tools/train_vtab.py --dataset digits --model capaboost_vit_micro_patch8_64 --epochs 20
  python tools/train_vtab.py --dataset cifar --source folder --data-dir vtab-1k --method lora --seed 1
  python tools/train_vtab.py --dataset mytask --source folder --data-dir images --set data.num_classes=5
  python tools/train_vtab.py --dataset dtd --set adapter.r=16 --set adapter.num_tied=4 --set train.lr=3e-4

Settings come from configs/vtab/<dataset>.yaml, or from configs/vtab/_base.yaml for a dataset without a
file, or from --config; flags replace them, and --set replaces anything. The sections are model, data,
train and adapter. A run leaves metrics.jsonl, TensorBoard logs, checkpoint.pt, adapter/ and result.json
in its output folder; a run that was stopped goes on exactly with the same command and --resume.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "vtab"
FLAGS = {
    "dataset": "data.dataset",
    "source": "data.source",
    "data_dir": "data.dir",
    "protocol": "data.protocol",
    "normalize": "data.normalize",
    "model": "model.name",
    "weights": "model.weights",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "seed": "train.seed",
    "mixed_precision": "train.mixed_precision",
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--dataset", metavar="NAME", help="a VTAB-1k task such as dtd, or digits, or a folder's name")
    add("--source", choices=("tfds", "folder", "digits"), help="where images come from (default: the config's)")
    add("--data-dir", metavar="DIR", help="folder of the tfds data, or of the task folders")
    add("--protocol", choices=("test", "select"), help="test: train on all 1,000 images, test after the last epoch; "
        "select: train on 800, test the epoch that is best on the other 200")  # fmt: skip
    add("--normalize", choices=("model", "imagenet", "none"), help="pixel statistics")
    add("--model", metavar="NAME", help="a timm name (default: vit_base_patch16_224.orig_in21k)")
    add("--weights", metavar="FILE", help="pretrained weights from a .safetensors, .pth, .bin or .npz file")
    add("--method", metavar="PRESET", help="capaboost-lora, lora, capaboost-padapter, padapter, capaboost-hadapter, "
        "hadapter, linear or full; r, dropout and the mask seed stay as configured")  # fmt: skip
    add("--epochs", type=int, metavar="N", help="the warm-up keeps its share, unless train.warmup_epochs is set")
    add("--batch-size", type=int, metavar="N", help="of one optimizer step, over all processes")
    add("--lr", type=float, metavar="RATE", help="peak learning rate of AdamW")
    add("--seed", type=int, metavar="N", help="of head, order and dropout; adapter.seed is that of the masks")
    add("--mixed-precision", choices=("no", "fp16", "bf16"), help="default: as accelerate launch was told")
    add("--output-dir", type=Path, metavar="DIR", help="default: runs/vtab/<dataset>/<model>/<method>-seed<seed>")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--config", type=Path, metavar="FILE", help="a YAML file in place of the dataset's own")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any setting; may be repeated")
    return parser


def flag_settings(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The flags that were given, by section."""
    settings: dict[str, dict[str, Any]] = {}
    for flag, target in FLAGS.items():
        section, key = target.split(".")
        if getattr(options, flag) is not None:
            settings.setdefault(section, {})[key] = getattr(options, flag)
    return settings


def train(options: argparse.Namespace) -> None:
    """Load the configuration, run it, show the result."""
    from capaboost_core.results import print_table
    from capaboost_vision.vtab_run import config_file, load_run

    path = options.config or config_file(CONFIGS, options.dataset)
    run = load_run(path, flag_settings(options), options.method, options.set)
    from capaboost_vision.experiment import run_experiment

    folder = options.output_dir or run.default_folder()
    result = run_experiment(run, folder, options.resume)
    if result:
        print_table([result])
        print(f"result: {folder / 'result.json'}")


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not (options.dataset or options.config):
        parser.error("give --dataset NAME, such as --dataset dtd, or --config FILE")
    from capaboost_core.errors import UserError

    first = os.environ.get("RANK", "0") == "0"
    try:
        train(options)
    except UserError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if first:
            print("stopped; the same command with --resume goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
