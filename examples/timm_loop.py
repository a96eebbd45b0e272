# %% [markdown]
# # A timm model in a loop of your own
#
# CapaBoost-LoRA in a plain PyTorch loop: adapt, train, save, load, merge. The images are handwritten digits that
# scikit-learn ships, the backbone is the small ViT that this package ships, so that no network is needed; with
# `vit_base_patch16_224` and your own loader nothing else changes.

# %%
from pathlib import Path
from tempfile import mkdtemp

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import capaboost_vision  # noqa: F401  registers the argument `capaboost`
from capaboost_core import load_adapter, parameter_counts, save_adapter, trainable_parameters, unload

torch.manual_seed(0)
digits = load_digits()
images = F.interpolate(torch.tensor(digits.images).float().unsqueeze(1) / 16, size=32).expand(-1, 3, -1, -1)
rows = TensorDataset((images - 0.5) / 0.5, torch.tensor(digits.target))
train, test = torch.utils.data.random_split(rows, [400, len(rows) - 400])

# %% [markdown]
# The preset `capaboost-lora` is d = 2 tied modules of rank 8 on q and v; `parameter_counts` says what trains.


# %%
def make(capaboost: str | None = "capaboost-lora") -> torch.nn.Module:
    return timm.create_model(
        "capaboost_vit_micro_patch8_64", pretrained=True, img_size=32, num_classes=10, capaboost=capaboost
    )


model = make()
print(parameter_counts(model))

# %% [markdown]
# Only the adapter and the head require a gradient, so the loop is any loop.

# %%
optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=5e-3)
model.train()
for epoch in range(4):
    for x, y in DataLoader(train, batch_size=40, shuffle=True):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")


# %%
@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    model.eval()
    hits = sum((model(x).argmax(1) == y).sum().item() for x, y in DataLoader(test, batch_size=200))
    return 100 * hits / len(test)


trained = accuracy(model)
print(f"accuracy {trained:.1f} %")

# %% [markdown]
# The adapter file holds the kept entries and the head. Loaded into a fresh base model, it is the same model; `unload`
# adds the delta weights to the frozen ones and leaves a plain timm model.

# %%
folder = Path(mkdtemp()) / "digits"
save_adapter(model, folder)
print(f"{(folder / 'adapter.safetensors').stat().st_size / 1024:.0f} KiB")
again = load_adapter(make(None), folder)
assert accuracy(again) == trained
plain = unload(again)
print(type(plain).__name__, f"{accuracy(plain):.1f} %")
