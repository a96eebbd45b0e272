# %% [markdown]
# # Compare methods at one size
#
# Which method is best with 10,000 trained parameters? `compare` finds the size of each method, trains all of them on
# the same rows, and prints one table; `tables` pairs the runs by seed. Two seeds tell little: read the interval. What
# each method costs on a large model needs no training (`flops`).
#
# Each call here is a command of the shell: `main(["compare", "--dataset", ...])` is `capaboost compare --dataset ...`.

# %%
from pathlib import Path
from tempfile import mkdtemp

from capaboost.cli import main

METHODS = "lora,capaboost-padapter"

# %%
if __name__ == "__main__":  # since workers are processes, which import this file
    folder = Path(mkdtemp()) / "compared"
    code = main([
        "compare", "--dataset", "digits", "--model", "capaboost_vit_micro_patch8_64", "--set", "model.img_size=32",
        "--methods", METHODS, "--budget", "10k", "--seeds", "42,43", "--epochs", "1", "--output-dir", str(folder),
    ])  # fmt: skip
    assert code == 0

# %%
if __name__ == "__main__":
    assert main(["tables", str(folder), "--compare", "lora"]) == 0

# %%
if __name__ == "__main__":
    assert main(["flops", "--model", "vit_base_patch16_224", "--methods", METHODS]) == 0
