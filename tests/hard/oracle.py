"""The one rule of all generated cases: a call succeeds, or raises a UserError of one line and leaves no trace."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import settings
from torch import nn

from capaboost_core import UserError
from tests.hard.counts import count

LONGEST = 2000  # characters of a message
slow = settings(max_examples=settings.default.max_examples // 3)  # for cases of a tenth of a second and more


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one generated case."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def attempt(call: Callable[[], Any], folder: Path | None = None, model: nn.Module | None = None) -> Any:
    """The call's value, or the UserError with which it refused.

    Args:
        call: What is tried; any other exception fails the test.
        folder: Everything below it stays as it is, byte for byte, if the call refuses.
        model: It stays as it is, bit for bit, if the call refuses.
    """
    files, parts = contents(folder), describe(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = call()
    except UserError as error:
        check_line(str(error))
        assert contents(folder) == files, "a refusal changed files"
        assert describe(model) == parts, "a refusal changed the model"
        count("refused")
        return error
    count("accepted")
    return value


def refused(value: Any) -> bool:
    """Whether `attempt` gave a refusal."""
    return isinstance(value, UserError)


def check_line(message: str) -> None:
    """A message is one line that can be shown anywhere."""
    assert message.strip()
    assert len(message.splitlines()) == 1, f"a message of several lines: {message!r}"
    assert len(message) <= LONGEST, f"a message of {len(message)} characters"
    message.encode()  # no half of a surrogate pair, at which print would fail


def contents(folder: Path | None) -> dict[str, str | None]:
    """Every path below a folder with a hash of what it holds."""
    if folder is None:
        return {}
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in folder.rglob("*")
    }


def describe(model: nn.Module | None) -> list[tuple]:
    """Modules, attributes, hooks, values and requires_grad of a model."""
    if model is None:
        return []
    modules = [(name, id(module), *map(_of, sorted(vars(module).items()))) for name, module in model.named_modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return modules + [(name, id(t), t.requires_grad, str(t.dtype), bits(t)) for name, t in tensors]


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's values."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _of(attribute: tuple[str, Any]) -> tuple:
    name, value = attribute
    return name, tuple(map(str, value)) if isinstance(value, (dict, set)) else repr(value)
