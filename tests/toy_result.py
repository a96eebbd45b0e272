"""What a `result.json` holds, as far as tables need it."""

RESULT = {
    "task": "digits",
    "model": "tiny",
    "method": "capaboost-lora",
    "seed": 0,
    "protocol": "test",
    "metric": "accuracy",
    "value": 90.0,
    "trainable_parameters": 221184,
    "percent_trainable": 0.2576,
    "epochs": 20,
    "device": "cpu",
    "split_note": "seed 0",
    "config": {"train": {"seed": 0, "lr": 0.001, "output_dir": "runs/a"}},
}
