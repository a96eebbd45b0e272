"""What each set of VTAB-1k takes to prepare, and whether it is prepared: known without timm, torch or tfds.

The sizes are those of the files that tensorflow-datasets 4.9.10 lists with checksums for the configuration in use.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from capaboost_core.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class PreparedSet:
    """A builder of TensorFlow Datasets and what its preparation takes.

    Attributes:
        builder: Its name, with its config after a slash.
        tasks: Those of VTAB-1k that it holds.
        download: Bytes that are downloaded; None where the package states none.
        address: The page of a download by hand; None where tensorflow-datasets downloads.
        files: What must lie in the folder of manual downloads, as paths below it.
    """

    builder: str
    tasks: tuple[str, ...]
    download: int | None
    address: str | None = None
    files: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """The size of the download in words."""
        if self.download is None:
            return "not stated"
        return f"{self.download / GIB:.2f} GiB" if self.download >= GIB else f"{self.download / 2**20:.0f} MiB"


SETS = (
    PreparedSet("caltech101", ("caltech101",), 137_414_764),
    PreparedSet("cifar100", ("cifar",), 168_513_733),
    PreparedSet("dtd", ("dtd",), 625_239_812),
    PreparedSet("oxford_flowers102", ("oxford_flowers102",), 344_878_000),
    PreparedSet("oxford_iiit_pet", ("oxford_iiit_pet",), 811_092_049),
    PreparedSet("svhn_cropped", ("svhn",), 1_575_594_780),
    PreparedSet("sun397/tfds", ("sun397",), 39_095_590_629),
    PreparedSet("patch_camelyon", ("patch_camelyon",), 8_028_222_167),
    PreparedSet("eurosat/rgb", ("eurosat",), 94_280_567),
    PreparedSet(
        "resisc45", ("resisc45",), None, "https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs", ("NWPU-RESISC45",)
    ),
    PreparedSet(
        "diabetic_retinopathy_detection/btgraham-300",
        ("diabetic_retinopathy",),
        None,
        "https://www.kaggle.com/c/diabetic-retinopathy-detection/data",
        ("train", "test", "sample", "trainLabels.csv"),
    ),
    PreparedSet("clevr", ("clevr_count", "clevr_dist"), 19_021_600_724),
    PreparedSet("dmlab", ("dmlab",), 3_017_022_789),
    PreparedSet("kitti", ("kitti",), 12_575_610_564),
    PreparedSet("dsprites", ("dsprites_loc", "dsprites_ori"), 28_024_106),
    PreparedSet("smallnorb", ("smallnorb_azi", "smallnorb_ele"), 262_778_180),
)
SET_OF_TASK = {task: found for found in SETS for task in found.tasks}


def find_sets(names: list[str]) -> list[PreparedSet]:
    """The sets of the given names, of a task or of a builder, each once.

    Raises:
        UserError: If there is none of a name.
    """
    known = {found.builder.partition("/")[0]: found for found in SETS} | SET_OF_TASK
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3) or sorted(SET_OF_TASK)
            raise UserError(f"VTAB-1k has no task {name!r}; type one of {', '.join(close)}, or --all")
    return list(dict.fromkeys(known[name] for name in names))


def tfds_folder(data_dir: str | None) -> Path:
    """Where tensorflow-datasets keeps its data: the given folder, or its own default."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def is_prepared(found: PreparedSet, data_dir: str | None) -> bool:
    """Whether some version of the set is there; reading it may still refuse its format."""
    return any((tfds_folder(data_dir) / found.builder).glob("*/dataset_info.json"))


def missing_by_hand(found: PreparedSet, data_dir: str | None) -> str | None:
    """One line that says what to download by hand, and where to put it; None if nothing is missing."""
    folder = tfds_folder(data_dir) / "downloads" / "manual"
    missing = [name for name in found.files if not (folder / name).exists()]
    if not missing:
        return None
    return f"{found.tasks[0]} is downloaded by hand: from {found.address} put {', '.join(missing)} into {folder}"


def check_prepared(task: str, data_dir: str | None) -> None:
    """Refuse a task of VTAB-1k whose set is not there, before anything heavy is imported.

    Raises:
        UserError: With the command that prepares it.
    """
    found = SET_OF_TASK.get(task)
    if found is None or "://" in (data_dir or "") or is_prepared(found, data_dir):
        return  # what reads another task, or a folder on the network, explains more
    flag = "" if data_dir is None else f" --data-dir {data_dir}"
    raise UserError(
        f"{task} is not in {tfds_folder(data_dir)}; prepare it once by `capaboost prepare-vtab {task}{flag}` "
        f"(download: {found.size}{', by hand' if found.address else ''}), or pass --data-dir, --source or --data"
    )
