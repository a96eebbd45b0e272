"""CapaBoost with peft and transformers' Trainer: train on CoLA, keep the best checkpoint, go on after a kill.

python examples/peft_trainer.py --model MODEL --data glue/CoLA --output runs/peft-cola

MODEL is a name on the hub or a folder. The same command goes on from the last checkpoint. Checkpoints, and the folder
`adapter` at the end, hold the adapter and the head alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from peft import TaskType, get_peft_model
from sklearn.metrics import matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from capaboost_peft import CapaBoostConfig


def main(arguments: list[str] | None = None, callbacks: list[TrainerCallback] | None = None) -> float:
    """Train, or go on; returns Matthews' correlation of the best checkpoint on the development rows."""
    args = _parser().parse_args(arguments)
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2)
    config = CapaBoostConfig(task_type=TaskType.SEQ_CLS, r=args.r, lora_alpha=args.r, target_modules="all-linear")
    model = get_peft_model(base, config)  # the new classifier trains and is saved with it
    model.print_trainable_parameters()
    trainer = Trainer(
        model,
        _settings(args),
        DataCollatorWithPadding(tokenizer),
        train_dataset=_rows(args.data / "train.tsv", tokenizer),
        eval_dataset=_rows(args.data / "dev.tsv", tokenizer),
        compute_metrics=_score,
        callbacks=callbacks,
    )
    done = get_last_checkpoint(str(args.output)) if args.output.is_dir() else None
    trainer.train(resume_from_checkpoint=done)
    trainer.save_model(str(args.output / "adapter"))  # for PeftModel.from_pretrained(base, folder)
    score = trainer.evaluate()["eval_matthews"]
    print(f"Matthews' correlation {score:.4f}, adapter in {args.output / 'adapter'}")
    return score


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path, help="folder with train.tsv and dev.tsv of CoLA")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--r", type=int, default=8, help="rank of one module; an increment has twice that")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=42)
    return parser


def _settings(args: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        str(args.output),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=128,
        learning_rate=args.lr,
        warmup_steps=0.06,
        seed=args.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="matthews",
        report_to="none",
    )


def _rows(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """CoLA's rows: source, label, mark, sentence."""
    cells = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    encoded = tokenizer([row[3] for row in cells], truncation=True, max_length=128)
    return [{"input_ids": ids, "label": int(row[1])} for ids, row in zip(encoded["input_ids"], cells, strict=True)]


def _score(prediction: EvalPrediction) -> dict[str, float]:
    return {"matthews": matthews_corrcoef(prediction.label_ids, np.argmax(prediction.predictions, axis=1))}


if __name__ == "__main__":
    main()
