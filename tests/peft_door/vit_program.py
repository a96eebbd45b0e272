"""A timm ViT-S/14 and an accelerate loop, with peft and `import capaboost_peft` alone: train, or go on after a kill.

python vit_program.py OUTPUT IMAGES WEIGHTS. OUTPUT/best is the adapter of the epoch with the highest accuracy on the
validation images, and OUTPUT/logits.pt what it gives for them.
"""

import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from peft import PeftModel, get_peft_model
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from capaboost_peft import CapaBoostConfig

SIZE, CLASSES, EPOCHS, BATCH, TRAIN = 56, 10, 3, 20, 100


def backbone(weights: Path) -> nn.Module:
    torch.manual_seed(0)  # of the head
    file = dict(file=str(weights), num_classes=0)
    sizes = dict(img_size=SIZE, num_classes=CLASSES, dynamic_img_size=False)
    return timm.create_model("vit_small_patch14_dinov2", pretrained=True, pretrained_cfg_overlay=file, **sizes)


def rows(images: Path, split: str, most: int) -> tuple[Tensor, Tensor]:
    """The first images of the first ten classes."""
    lines = [line.rsplit(" ", 1) for line in (images / f"{split}.txt").read_text().splitlines()]
    few = [(name, int(label)) for name, label in lines if int(label) < CLASSES][:most]
    transform = create_transform(SIZE)
    x = torch.stack([transform(Image.open(images / name).convert("RGB")) for name, _ in few])
    return x, torch.tensor([label for _, label in few])


def main(output: Path, images: Path, weights: Path) -> None:
    project = ProjectConfiguration(project_dir=str(output), automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=project)
    set_seed(0)
    config = CapaBoostConfig(target_modules=["qkv", "fc1", "fc2"], slices={"qkv": "qv"}, modules_to_save=["head"])
    model = get_peft_model(backbone(weights), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    (x, y), (x_val, y_val) = rows(images, "train800", TRAIN), rows(images, "val200", TRAIN)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    done = output / "checkpoints"
    if done.is_dir() and any(done.iterdir()):
        accelerator.load_state()
        project.iteration = progress.epoch
    for epoch in range(progress.epoch, EPOCHS):
        model.train()
        for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(BATCH):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accuracy = (logits(model, x_val).argmax(1) == y_val).float().mean().item()
        print(f"epoch {epoch} accuracy {accuracy:.3f}", flush=True)
        if accuracy > progress.best:
            accelerator.unwrap_model(model).save_pretrained(output / "best")
            torch.save(logits(model, x_val), output / "logits.pt")
        progress.epoch, progress.best = epoch + 1, max(accuracy, progress.best)
        accelerator.save_state()


class Progress:
    epoch, best = 0, -1.0

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.best = state["epoch"], state["best"]


@torch.no_grad()
def logits(model: nn.Module | PeftModel, x: Tensor) -> Tensor:
    return torch.cat([model.eval()(part) for part in x.split(BATCH)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:]))
