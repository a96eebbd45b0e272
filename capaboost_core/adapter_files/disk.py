"""The two files of an adapter: `adapter.safetensors` and `capaboost_config.json`.

Before 0.2.0 the record was called `adapter_config.json`, as peft's is. Such folders are read as before, and the next
save renames it. Now neither library takes the other's files for its own, and both can lie in one folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from capaboost_core.adapter_files.record import Record
from capaboost_core.errors import UserError
from capaboost_core.files import explained, open_regular, partials_in, read_bytes, read_text, write_together
from capaboost_core.wrappers import strip_wrappers

WEIGHTS, CONFIG = "adapter.safetensors", "capaboost_config.json"
OLD_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """The content of an adapter's folder.

    Attributes:
        folder: The folder.
        record: The record that belongs to the weights.
        tensors: The trained parameters by name.
    """

    folder: Path
    record: Record
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Limits:
    """The largest sizes that an adapter's files can have; larger files are not read.

    Attributes:
        text: Bytes of the record, and of the header of the weights.
        weights: Bytes of the weights.
    """

    text: int
    weights: int

    @classmethod
    def of(cls, model: nn.Module) -> Limits:
        """Allow 4 kB of names for each module, and six float32 values for each entry of the model's parameters."""
        modules, entries = sum(1 for _ in model.modules()), sum(p.numel() for p in model.parameters())
        return cls(2**20 + 4096 * modules, 2**26 + 24 * entries)


def write_adapter(folder: Path, record: Record, tensors: dict[str, Tensor]) -> None:
    """Write both files; after a kill at any moment the folder holds the old adapter or the new one.

    Both are complete on the disk before the weights are renamed, and then the record. After a kill between the two the
    new record is next to the new weights in a temporary file, where `read_adapter` finds it.

    Raises:
        UserError: If a file cannot be written; the old files are then unchanged.
    """
    # One entry of metadata only, as the library writes several in a varying order.
    weights = save(tensors, {"mask_checksum": record.mask_checksum})
    text = replace(record, weights_sha256=hashlib.sha256(weights).hexdigest()).to_json()
    Record.from_json(text)  # what cannot be read is not written
    write_together(
        {folder / WEIGHTS: lambda file: file.write(weights), folder / CONFIG: lambda file: file.write(text.encode())}
    )
    if (folder / OLD_CONFIG).exists():
        with suppress(UserError, OSError):
            _read_record(folder / OLD_CONFIG, 2**26)  # which peft's is not
            (folder / OLD_CONFIG).unlink()


def config_path(folder: Path) -> Path:
    """The path of the record in a folder, under its old name where that is the only one."""
    return folder / (OLD_CONFIG if (folder / OLD_CONFIG).exists() and not (folder / CONFIG).exists() else CONFIG)


def read_adapter(folder: Path, limits: Limits) -> Adapter:
    """Read and check both files, again if another process replaces them meanwhile.

    Raises:
        UserError: If a file is missing, unreadable, damaged, foreign or too large, or they are not of one adapter.
    """
    while True:
        before = _versions(folder)
        try:
            return _read(folder, limits)
        except UserError:
            if _versions(folder) == before:
                raise


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the stored tensors by name, from the header alone.

    Raises:
        UserError: If there are no weights.
    """
    path = folder / WEIGHTS
    with _weights_explained(path):
        open_regular(path).close()
        with _opened(path) as file:
            names: list[str] = file.keys()
            return {strip_wrappers(name): tuple(file.get_slice(name).get_shape()) for name in names}


def read_record(folder: Path, limits: Limits | None = None) -> Record:
    """The record in a folder.

    Raises:
        UserError: If it is missing, unreadable, damaged, foreign or too large.
    """
    return _read_record(config_path(folder), limits.text if limits else 2**26)


def read_weights(path: Path, limits: Limits) -> bytes:
    """The bytes of a safetensors file, if neither it nor its header is larger than the model's could be.

    Raises:
        UserError: If it is larger, or no regular file.
        SafetensorError: If its header is larger.
        OSError: If the system refuses it.
    """
    data = read_bytes(path, limits.weights)
    if int.from_bytes(data[:8], "little") > limits.text:
        raise SafetensorError("a header that the model's parameters could not fill")
    return data


def _read(folder: Path, limits: Limits) -> Adapter:
    path = folder / WEIGHTS
    with _weights_explained(path):
        data = read_weights(path, limits)
        tensors = load(data)
        with _opened(path) as file:
            metadata: dict[str, str] = file.metadata() or {}
    record = _record_of(folder, hashlib.sha256(data).hexdigest(), limits)
    if metadata.get("mask_checksum") != record.mask_checksum:
        raise UserError(
            f"{path} and {config_path(folder).name} belong to different adapters; copy both files of one adapter"
        )
    return Adapter(folder, record, {strip_wrappers(name): tensor for name, tensor in tensors.items()})


def _opened(path: Path) -> Any:
    """A safetensors file, of which only the header is read; the library declares no types."""
    return cast(Any, safe_open)(path, "pt")


@contextmanager
def _weights_explained(path: Path) -> Generator[None]:
    """Turn errors of reading weights into a line that says what to do."""
    with explained("read", path):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            if (path.parent / PEFT_WEIGHTS).exists():
                raise UserError(f"{path.parent} holds an adapter of peft; call load_peft(model, folder)") from error
            raise UserError(f"{path} is missing; give a folder that save_adapter wrote") from error
        except UserError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is truncated or no safetensors file; copy or save the adapter again") from error


def _record_of(folder: Path, digest: str, limits: Limits) -> Record:
    """The record of these weights: the one in the folder, or that of a save killed between its two renames."""
    record: Record | UserError
    try:
        record = read_record(folder, limits)
    except UserError as error:
        record = error
    if isinstance(record, Record) and record.weights_sha256 == digest:
        return record
    # The last but one is of an earlier version that saved over a folder of this one, the last was its name in 0.1.0.
    for path in (*partials_in(folder), folder / OLD_CONFIG, folder / f"{OLD_CONFIG}.partial"):
        with suppress(UserError):  # it holds weights, or is incomplete
            if (other := _read_record(path, limits.text)).weights_sha256 == digest:
                return other
    if isinstance(record, UserError):
        raise record
    if record.weights_sha256 is not None:
        raise UserError(
            f"{folder / WEIGHTS} is damaged, or {config_path(folder).name} belongs to different adapters; copy both "
            "files of one adapter (if you changed the weights on purpose, delete weights_sha256 and checksum from it)"
        )
    return record


def _read_record(path: Path, most: int) -> Record:
    with explained("read", path):
        try:
            text = read_text(path, most)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path.parent} holds no {CONFIG}; give a folder that save_adapter wrote") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not JSON; it is damaged, save the adapter again") from error
    try:
        return Record.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _versions(folder: Path) -> list[tuple[int, ...] | None]:
    """Values that change when a file is replaced."""
    found: list[tuple[int, ...] | None] = []
    for name in (WEIGHTS, CONFIG, OLD_CONFIG):
        try:
            status = (folder / name).stat()
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(None)
    return found
