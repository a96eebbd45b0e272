"""Use a trained run: its model with the adapter, the transform or tokenizer that it was trained with, and its classes.

```python
from capaboost import load_run

run = load_run("runs/vtab/photos/.../capaboost-lora-seed42")
print(run.classes, run.predict(["new/1.jpg"]))  # probabilities (images, classes)
```
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from capaboost.hub import adapter_folder, fetch
from capaboost.training.processes import checked_device
from capaboost_core import load_adapter, merge
from capaboost_core.adapter_files.base_model import DifferentBaseWarning
from capaboost_core.adapter_files.record import INFERENCE, read_inference
from capaboost_core.errors import UserError

Item = TypeVar("Item")
BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class ImageRun:
    """A classifier of images.

    Attributes:
        model: Adapted, in evaluation mode.
        classes: Names by label.
        size: (height, width) to which an image is resized directly, with bicubic interpolation.
        mean: Of each channel, for pixels from 0 to 1.
        std: Likewise.
    """

    model: nn.Module
    classes: tuple[str, ...]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    inputs: ClassVar[tuple[str, ...]] = ("images",)

    def transform(self, path: str | Path) -> Tensor:
        """An image file as the model's input (3, height, width).

        Raises:
            UserError: If it is not a readable image.
        """
        from PIL import Image

        from capaboost_vision.vtab.pixels import open_rgb

        try:
            image = open_rgb(Path(path))
        except UserError as error:
            raise UserError(f"{path} {error}") from error
        height, width = self.size
        pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BICUBIC)))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels.permute(2, 0, 1).float() / 255 - mean) / std

    def example(self, count: int = 2) -> tuple[Tensor]:
        """Random inputs of the model, to check an exported one with."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(count, 3, *self.size, generator=generator).to(_device(self.model)),)

    @torch.inference_mode()
    def predict(self, paths: Sequence[str | Path], shown: bool = False) -> Tensor:
        """Probabilities (images, classes) on the CPU.

        Raises:
            UserError: If one is not a readable image.
        """
        parts = [torch.empty(0, len(self.classes))]
        for batch in _batches(paths, "predict", shown):
            images = torch.stack([self.transform(path) for path in batch]).to(_device(self.model))
            parts.append(self.model(images).float().softmax(dim=1).cpu())
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class TextRun:
    """A classifier of texts or pairs of texts; without classes it predicts a number.

    Attributes:
        model: Adapted, in evaluation mode.
        classes: Names by label.
        tokenizer: The model's.
        max_length: Tokens of the longest input.
        columns: Names of the texts' columns in the data that it was trained on.
    """

    model: nn.Module
    classes: tuple[str, ...]
    tokenizer: Any
    max_length: int
    columns: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs, in the order of `example`."""
        return tuple(self._tokens(["a text"], ["another"] if len(self.columns) == 2 else None))

    def example(self) -> tuple[Tensor, ...]:
        """Two inputs of different lengths, to check an exported model with."""
        second = ["another", "another text, which is longer"] if len(self.columns) == 2 else None
        return tuple(self._tokens(["a text", "a text of which there is more"], second).values())

    def _tokens(self, texts: list[str], second: list[str] | None) -> Mapping[str, Tensor]:
        return self.tokenizer(
            texts, second, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(_device(self.model))

    @torch.inference_mode()
    def predict(self, texts: Sequence[str | tuple[str, str]], shown: bool = False) -> Tensor:
        """Probabilities (texts, classes) on the CPU; of a regression the numbers (texts, 1)."""
        parts = [torch.empty(0, max(1, len(self.classes)))]
        for batch in _batches(texts, "predict", shown):
            first = [text[0] if isinstance(text, tuple) else text for text in batch]
            second = [text[1] for text in batch if isinstance(text, tuple)]
            logits = self.model(**self._tokens(first, second or None)).logits.float()
            parts.append((logits.softmax(dim=1) if self.classes else logits).cpu())
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class GenerationRun:
    """A language model, which continues texts.

    Attributes:
        model: Adapted, in evaluation mode.
        tokenizer: The model's.
        max_length: Tokens of the blocks that it was trained on.
    """

    model: Any
    tokenizer: Any
    max_length: int

    classes: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ("text",)
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")

    def example(self) -> tuple[Tensor, ...]:
        """Two inputs, to check an exported model with."""
        tokens = self.tokenizer("a text of which there is more", return_tensors="pt").input_ids
        tokens = torch.cat([tokens, tokens.flip(1)]).to(_device(self.model))
        return tokens, torch.ones_like(tokens)

    @torch.inference_mode()
    def predict(self, texts: Sequence[str], shown: bool = False, max_new_tokens: int = 64) -> list[str]:
        """What follows each text by greedy decoding, up to the end token or so many tokens.

        Raises:
            UserError: If a text leaves no room for them in the model's positions, or has no token.
        """
        from capaboost_text.encode import readable_tokens
        from capaboost_text.lm.data import Encoder

        encoder, most = Encoder(self.tokenizer, self.max_length), readable_tokens(self.model.config) - max_new_tokens
        made: list[str] = []
        for batch in _batches(texts, "predict", shown):
            rows = encoder.prompts(batch)
            for row in rows:
                if not row:
                    raise UserError("a text has no token to go on from; leave empty ones out")
                if len(row) > most:
                    raise UserError(f"a text has {len(row)} tokens, but the model has room for {most}; shorten it")
            padded = self.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
            tokens = self.model.generate(
                **padded.to(_device(self.model)),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=self._ends(),
                pad_token_id=self.tokenizer.pad_token_id,
            )
            new = tokens[:, padded["input_ids"].shape[1] :]
            made += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return made

    def _ends(self) -> list[int]:
        """The end token that it was trained with, which its base may not know as one, and the base's."""
        of_base = self.model.generation_config.eos_token_id
        more = of_base if isinstance(of_base, list) else [] if of_base is None else [of_base]
        return [self.tokenizer.eos_token_id, *more]


def load_run(
    folder: str | Path, base: str | None = None, device: str | torch.device = "cpu", merged: bool = False
) -> ImageRun | TextRun | GenerationRun:
    """The model of a run's folder, or of the adapter folder in it, ready to predict.

    Args:
        folder: What a training command wrote, or `hf-hub:user/name`.
        base: Where the frozen model is now, if not where it was in training: a weights file of a timm model, or a
            transformers folder or name.
        device: Where the model is put.
        merged: Sum the delta weights into the frozen ones once, which makes it as fast as the base model.

    Raises:
        UserError: If the folder holds no adapter of a training command, its base model cannot be had, or it cannot be
            merged.
    """
    adapter = adapter_folder(fetch(folder))
    if not adapter.is_dir():
        raise UserError(f"there is no folder {adapter}; give a run's folder, or hf-hub:user/name")
    record = read_inference(adapter)
    if record is None:
        raise UserError(
            f"{adapter} has no {INFERENCE}, which train-vtab, train-glue and train-lm write; give a run's folder, or "
            "make the base model and call load_adapter(model, folder)"
        )
    make = {"images": _image_run, "texts": _text_run, "language": _generation_run}[record["kind"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DifferentBaseWarning)
        try:
            run = make(record, adapter, base, checked_device(device))
        except DifferentBaseWarning as error:
            raise UserError(f"{error}; pass the base model that it was trained on as --base PATH") from error
    if merged:
        merge(run.model)
    return run


def _image_run(record: dict[str, Any], adapter: Path, base: str | None, device: torch.device) -> ImageRun:
    from capaboost.runs.settings import VisionModelSection
    from capaboost.runs.vtab import check_model, create_base

    section = VisionModelSection.from_dict(record["model"] | ({"weights": base} if base else {}), f"{adapter}: model.")
    if section.weights and not base and not Path(section.weights).is_file():
        raise UserError(f"the base model's weights {section.weights} are not here; pass --base FILE")
    check_model(section)
    model = load_adapter(create_base(section, len(record["classes"])), adapter).to(device).eval()
    form = record["transform"]
    return ImageRun(model, tuple(record["classes"]), tuple(form["size"]), tuple(form["mean"]), tuple(form["std"]))


def _text_run(record: dict[str, Any], adapter: Path, base: str | None, device: torch.device) -> TextRun:
    from capaboost_text.encoders import load_classifier

    name, classes = base or record["model"]["name"], tuple(record["classes"])
    tokenizer = _tokenizer(name, record["max_length"])
    base_model = load_classifier(name, max(1, len(classes)), tokenizer.pad_token_id)
    model = load_adapter(base_model, adapter).to(device).eval()
    return TextRun(model, classes, tokenizer, record["max_length"], tuple(record["columns"]))


def _generation_run(record: dict[str, Any], adapter: Path, base: str | None, device: torch.device) -> GenerationRun:
    from capaboost_text.encoders import load_language_model

    name = base or record["model"]["name"]
    tokenizer = _tokenizer(name, record["max_length"])
    model = load_adapter(load_language_model(name), adapter).to(device).eval()
    return GenerationRun(model, tokenizer, record["max_length"])


def _tokenizer(name: str, max_length: int) -> Any:
    from capaboost_text.encode import load_tokenizer

    try:
        return load_tokenizer(name, max_length)
    except UserError as error:
        if Path(name).is_dir():
            raise
        raise UserError(f"{error}; a base model in a folder that has moved is --base PATH") from error


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _batches(items: Sequence[Item], title: str, shown: bool) -> Iterator[Sequence[Item]]:
    with tqdm(total=len(items), desc=title, leave=False, disable=None if shown else True) as bar:
        for at in range(0, len(items), BATCH_SIZE):
            yield items[at : at + BATCH_SIZE]
            bar.update(len(items[at : at + BATCH_SIZE]))
