# %% [markdown]
# # Your own images, from a folder to ONNX
#
# A folder with a subfolder for each class, trained, tried on new images, and exported. Each call here is a command of
# the shell: `main(["train-vtab", "--data", ...])` is `capaboost train-vtab --data ...`.

# %%
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image
from sklearn.datasets import load_digits

from capaboost import load_run
from capaboost.cli import main

folder = Path(mkdtemp())
digits = load_digits()
for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    if label < 3 and index < 600:
        place = folder / ("new" if index % 10 == 0 else f"photos/digit-{label}") / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).resize((64, 64)).convert("RGB").save(place)
sorted(path.name for path in (folder / "photos").iterdir())

# %% [markdown]
# Training splits the images by class and by a seed, and records the split. The model is the one that this package
# ships; `--model vit_base_patch16_224` takes timm's.

# %%
code = main([
    "train-vtab", "--data", str(folder / "photos"), "--model", "capaboost_vit_micro_patch8_64",
    "--set", "model.img_size=32", "--epochs", "5", "--output-dir", str(folder / "run"),
])  # fmt: skip
assert code == 0
sorted(path.name for path in (folder / "run").iterdir())

# %% [markdown]
# The run's folder holds all that predicting needs: base model, adapter, classes, and how images were prepared.

# %%
assert main(["predict", str(folder / "run"), str(folder / "new"), "--csv", str(folder / "new.csv")]) == 0
print((folder / "new.csv").read_text()[:200])

# %%
run = load_run(folder / "run")
print(run.classes)

# %% [markdown]
# The export merges the delta weights, writes the ONNX file, and compares it with the model on a batch before it says
# done.

# %%
assert main(["export", str(folder / "run"), "--to", "onnx", "--output", str(folder / "exported")]) == 0
sorted(path.name for path in (folder / "exported").iterdir())

# %%
import onnxruntime  # noqa: E402

session = onnxruntime.InferenceSession(next((folder / "exported").glob("*.onnx")))
print([(value.name, value.shape) for value in (*session.get_inputs(), *session.get_outputs())])
