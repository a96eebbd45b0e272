"""Write a trained run for other programs: ONNX, timm, peft, or plain safetensors.

Examples:
  capaboost export RUN --to onnx --output exported/      # model.onnx, for onnxruntime
  capaboost export RUN --to timm --output exported/      # timm.create_model("local-dir:exported", pretrained=True)
  capaboost export RUN --to peft --output exported/      # a LoRA for PeftModel.from_pretrained(base, "exported")
  capaboost export RUN --to safetensors --output exported/   # the plain model's state dict, adapter merged

Beside lie classes.json and what makes inputs: transform.json of images (size, resize rule, mean and std of pixels from
0 to 1), the tokenizer of texts. What was written is read back, and its outputs on one batch are compared with the
model's before the command says done.
"""

from __future__ import annotations

import argparse

from capaboost.command_line import exit_code, given, given_path, make_parser

FORMATS = ("onnx", "timm", "peft", "safetensors")


def export_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    add("run", type=given_path, metavar="RUN", help="a run's folder, or the adapter folder in it")
    add("--to", required=True, choices=FORMATS, help="the format")
    add("--output", required=True, type=given_path, metavar="DIR", help="a new folder")
    add("--base", type=given, metavar="PATH", help="where the frozen model is now, if not where it was in training")
    return parser


def run_export(options: argparse.Namespace) -> None:
    """Load, write, compare."""
    from capaboost.export import export
    from capaboost.inference import load_run

    error = export(load_run(options.run, options.base), options.to, options.output)
    print(f"{options.output}: done; on one batch it differs from the model by {error:.1e} of its largest logit")


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = export_parser(prog).parse_args(arguments)
    return exit_code(lambda: run_export(options), "run the same command again")
