"""How the embedded backbone is pretrained."""

from __future__ import annotations

from pydantic import Field

from capaboost_core.settings.base import Settings


class Recipe(Settings):
    """The settings of a run; each is a flag of the command.

    Raises:
        UserError: If one is out of range.
    """

    epochs: int = Field(16, ge=1, description="passes over the images")
    batch_size: int = Field(256, ge=1, description="images of a step")
    lr: float = Field(2e-3, gt=0, description="AdamW's; Muon's is ten times as large")
    weight_decay: float = Field(0.05, ge=0, description="of both optimizers, vectors left out")
    patch_drop: float = Field(0.5, ge=0, lt=1, description="share of tokens dropped in training")
    full_epochs: int = Field(1, ge=0, description="last epochs, trained on all tokens")
    mixup: float = Field(0.2, ge=0, description="alpha of the Beta distribution; 0 = off")
    seed: int = Field(0, ge=0, lt=4_000_000, description="of weights, order and augmentation")
