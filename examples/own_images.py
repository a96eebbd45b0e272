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
# Training holds out a fifth of each class by a seed, tests on it, and records the split in `result.json`. The model is
# the one that this package ships, at half its image size for speed; `--model vit_base_patch16_224` takes timm's. Five
# epochs are a demonstration: the recipe of this model has 20, of any other 100.

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
# The export (extra `onnx`) merges the delta weights, writes the ONNX file, and compares it with the model on a batch
# before it says done. Beside it are the classes, and how an image becomes the input.

# %%
assert main(["export", str(folder / "run"), "--to", "onnx", "--output", str(folder / "exported")]) == 0
sorted(path.name for path in (folder / "exported").iterdir())

# %% [markdown]
# The file needs neither torch nor this package: images are squashed to the size, divided by 255 and normalised; the
# outputs are logits.

# %%
import json  # noqa: E402

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

form, classes = (json.loads((folder / "exported" / f"{name}.json").read_text()) for name in ("transform", "classes"))
height, width = form["size"]
image = Image.open(folder / "new" / "0.png").convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
pixels = (np.asarray(image, np.float32) / 255 - np.float32(form["mean"])) / np.float32(form["std"])
session = onnxruntime.InferenceSession(folder / "exported" / "model.onnx")
(logits,) = session.run(["logits"], {"images": pixels.transpose(2, 0, 1)[None]})
print(classes[logits.argmax()], f"{np.exp(logits - np.logaddexp.reduce(logits, axis=1)).max():.3f}")
