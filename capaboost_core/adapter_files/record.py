"""The two JSON files beside an adapter's weights: `capaboost_config.json`, and `inference.json` of a training run.

`load_adapter` needs `capaboost_config.json` only. A training run adds in `inference.json` what a new process needs to
use the adapter: the base model's settings, the names of the classes and the transform of an input.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from capaboost_core.adapter_files.base_model import Fingerprint
from capaboost_core.errors import UserError
from capaboost_core.files import read_text, write_atomically
from capaboost_core.methods import Method
from capaboost_core.plan import Plan, names

FORMAT = "capaboost-1"
REQUIRED_KEYS = {"base_model", "config", "plan", "mask_checksum"}
INFERENCE = "inference.json"
INFERENCE_KINDS = ("images", "texts", "language")


@dataclass(frozen=True)
class Record:
    """The content of `capaboost_config.json`; fields that older files lack are None.

    Attributes:
        base_model: Name of the model that it was trained on.
        config: The adapter's configuration.
        plan: The adapted layers and the head.
        mask_checksum: SHA-256 of all masks.
        extra: Names of further parameters that were trained and are saved.
        fingerprint: The fingerprint of the frozen weights.
        weights_sha256: SHA-256 of `adapter.safetensors`.
        intact: Whether the file's checksum matches its content.
    """

    base_model: str
    config: Method
    plan: Plan
    mask_checksum: str
    extra: tuple[str, ...] | None = None
    fingerprint: Fingerprint | None = None
    weights_sha256: str | None = None
    intact: bool = True

    def to_json(self) -> str:
        """The text of the file; equal records have equal texts."""
        values = {
            "format": FORMAT,
            "base_model": self.base_model,
            "config": self.config.to_dict(),
            "plan": self.plan.to_dict(),
            "mask_checksum": self.mask_checksum,
            "extra": list(self.extra or ()),
            "fingerprint": self.fingerprint and self.fingerprint.to_dict(),
            "weights_sha256": self.weights_sha256,
        }
        values["checksum"] = _checksum(json.loads(json.dumps(values)))
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read back `to_json`, and the files of earlier versions.

        Raises:
            UserError: If the text is no JSON, a key is missing, or a type or value is wrong.
        """
        try:
            return cls._from_values(parse(text))
        except RecursionError as error:
            raise UserError("nested too deeply; it is damaged, save the adapter again") from error

    @classmethod
    def _from_values(cls, values: Any) -> Record:
        values = cast(dict[str, Any], values if isinstance(values, dict) else {})
        if values.get("format") != FORMAT or not values.keys() >= REQUIRED_KEYS:
            raise UserError(f"no {FORMAT} adapter; give a folder that save_adapter wrote")
        for key in ("base_model", "mask_checksum"):
            if not isinstance(values[key], str) or not values[key]:
                raise UserError(f"{key} must be text; it is damaged, save the adapter again")
        if not isinstance(values["config"], dict):
            raise UserError("config must map settings to values; it is damaged, save the adapter again")
        extra, fingerprint = values.get("extra"), values.get("fingerprint")
        digest = values.get("weights_sha256")
        if not isinstance(digest, str | None):
            raise UserError("weights_sha256 must be text; it is damaged, save the adapter again")
        return cls(
            base_model=values["base_model"],
            config=Method.from_record(values["config"]),
            plan=Plan.from_dict(values["plan"]),
            mask_checksum=values["mask_checksum"],
            extra=None if extra is None else names("extra", extra),
            fingerprint=None if fingerprint is None else Fingerprint.from_dict(fingerprint),
            weights_sha256=digest,
            intact=values.get("checksum") in (None, _checksum(values)),
        )


def parse(text: str) -> Any:
    """JSON with finite numbers only.

    Raises:
        UserError: If it is something else.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_integer)
    except UserError:
        raise
    except ValueError as error:
        raise UserError("not JSON; it is damaged, save the adapter again") from error


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise UserError(f"{text[:20]} is too large; numbers must be finite")
    return number


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def _checksum(values: dict[str, Any]) -> str:
    """SHA-256 of a record without its checksum."""
    rest = {key: value for key, value in values.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_inference(folder: Path, record: dict[str, Any]) -> None:
    """Write `inference.json` into an adapter's folder.

    Raises:
        UserError: If the file cannot be written.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / INFERENCE, lambda file: file.write(text.encode()))


def read_inference(folder: Path) -> dict[str, Any] | None:
    """The content of `inference.json` in an adapter's folder; None without that file.

    Raises:
        UserError: If it is damaged.
    """
    path = folder / INFERENCE
    if not path.is_file():
        return None
    try:
        record = json.loads(read_text(path))
        _check_inference(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again from where the adapter was trained") from error
    return record


def _check_inference(record: Any) -> None:
    """Raise any of the errors above if a field is missing or of another type."""
    if record["kind"] not in INFERENCE_KINDS or not isinstance(record["model"]["name"], str):
        raise ValueError("it has another form")
    if not all(isinstance(name, str) for name in record["classes"]):
        raise ValueError("its classes are no names")
    if record["kind"] != "images":
        columns = record["columns"] if record["kind"] == "texts" else ["text"]
        if type(record["max_length"]) is not int or not 1 <= len(columns) <= 2:
            raise ValueError("its texts are of another form")
        return
    form = record["transform"]
    sizes, numbers = form["size"], [*form["mean"], *form["std"]]
    if [type(size) for size in sizes] != [int, int] or [type(number) for number in numbers] != [float] * 6:
        raise ValueError("its transform is of another form")
