"""The two files of an adapter: `adapter.safetensors` and `adapter_config.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from capaboost_core.adapter_files.record import FORMAT, Record
from capaboost_core.errors import UserError
from capaboost_core.files import explained, partial_of, write_together
from capaboost_core.wrappers import clean

WEIGHTS, CONFIG = "adapter.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """What the files of a folder hold.

    Attributes:
        folder: The folder.
        record: The record that belongs to the weights.
        tensors: The trained parameters by name.
    """

    folder: Path
    record: Record
    tensors: dict[str, Tensor]


def write_adapter(folder: Path, record: Record, tensors: dict[str, Tensor]) -> None:
    """Write both files; after a kill at any moment the folder holds the old adapter or the new one.

    Both are complete on the disk before the weights are renamed, then the record. Killed between the two, the new
    record is still next to the new weights, in a separate file, where `read_adapter` finds it.

    Raises:
        UserError: If that cannot be; the old files are then as they were.
    """
    weights = _serialised(tensors, {"format": FORMAT, "mask_checksum": record.mask_checksum})
    text = replace(record, weights_sha256=hashlib.sha256(weights).hexdigest()).to_json()
    Record.from_json(text)  # what cannot be read is not written
    write_together(
        {folder / WEIGHTS: lambda file: file.write(weights), folder / CONFIG: lambda file: file.write(text.encode())}
    )


def read_adapter(folder: Path) -> Adapter:
    """Read and check both files.

    Raises:
        UserError: If a file is missing, unreadable, damaged or foreign, or they are not of one adapter.
    """
    path = folder / WEIGHTS
    with explained("read", path):
        try:
            data = path.read_bytes()
            tensors = load(data)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path} is missing; give a folder that save_adapter wrote") from error
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is truncated or no safetensors file; copy or save the adapter again") from error
    record = _interrupted(folder, data) or _read_record(folder / CONFIG)
    _check_pair(folder, record, data)
    return Adapter(folder, record, {clean(name): tensor for name, tensor in tensors.items()})


def _read_record(path: Path) -> Record:
    with explained("read", path):
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path.parent} holds no {CONFIG}; give a folder that save_adapter wrote") from error
        except ValueError as error:
            raise UserError(f"{path}: not JSON; it is damaged, save the adapter again") from error
    try:
        return Record.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _interrupted(folder: Path, data: bytes) -> Record | None:
    """The record of a save that was killed between the two renames."""
    try:
        record = _read_record(partial_of(folder / CONFIG))
    except UserError:  # killed earlier: it is not whole
        return None
    return record if record.weights_sha256 == hashlib.sha256(data).hexdigest() else None


def _check_pair(folder: Path, record: Record, data: bytes) -> None:
    if _metadata(data).get("mask_checksum") != record.mask_checksum:
        raise UserError(
            f"{folder / WEIGHTS} and {CONFIG} belong to different adapters; copy both files of one adapter"
        )
    if record.weights_sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise UserError(
            f"{folder / WEIGHTS} is damaged, or {CONFIG} belongs to different adapters; copy both files of one "
            "adapter (if you changed the weights on purpose, delete weights_sha256 and checksum from it)"
        )


def _metadata(data: bytes) -> dict[str, str]:
    return _header(data).get("__metadata__", {})


def _header(data: bytes) -> dict:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _serialised(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file; the library writes metadata in an order that changes, here it is that of the keys."""
    data = save(tensors, metadata)
    header = _header(data)
    ordered = {"__metadata__": dict(sorted(metadata.items()))} | {k: header[k] for k in header if k != "__metadata__"}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, data[8 + int.from_bytes(data[:8], "little") :]))
