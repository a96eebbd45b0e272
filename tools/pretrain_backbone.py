"""Pretrain the embedded backbone on Tiny ImageNet, resumable, on a CPU or a GPU.

    python tools/pretrain_backbone.py --data-dir DATA/upstream --output-dir runs/backbone

DATA/upstream holds Parquet files with the columns `image` (encoded bytes) and `label`. Steps are
cheaper by dropping half of the patch tokens in training (PatchDropout, Liu et al., 2023), and fewer by
Muon (Jordan et al., 2024) on the matrices of the blocks, with AdamW on the rest. A run that was stopped
goes on from its last epoch when it is started again, bit for bit. The weights kept are
an exponential moving average, in half precision.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # of a checkout that is not installed

from pretraining.recipe import Recipe  # noqa: E402

from capaboost.command_line import exit_code  # noqa: E402


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of train-*.parquet, val.parquet")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/backbone"), help="default: runs/backbone")
    for name, field in Recipe.model_fields.items():
        flag, kind, default = f"--{name.replace('_', '-')}", type(field.default), field.default
        parser.add_argument(flag, type=kind, default=default, help=f"{field.description} (default: {default})")
    return parser.parse_args(arguments)


def start(options: argparse.Namespace) -> None:
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.model_fields})
    from pretraining.loop import pretrain  # here, since it imports timm, which --help and a wrong flag need not

    pretrain(recipe, options.data_dir, options.output_dir)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return exit_code(lambda: start(options), "the same command goes on from its last epoch")


if __name__ == "__main__":
    sys.exit(main())
