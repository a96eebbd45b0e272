"""Write `expected.json`: outputs of the authors' code in float64, with the commits that it is from.

    python -m tests.methods.originals.write CLONES

CLONES holds clones, or bare ones, at OWNER+NAME or OWNER+NAME/repo. Their files are read with `git show` and run from
a temporary folder; nothing of them is kept.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.methods.originals.cases import CASES, EXPECTED, addition
from tests.methods.originals.of_models import MODELS
from tests.methods.originals.of_modules import MODULES
from tests.methods.originals.sources import SOURCES


@torch.no_grad()
def main(clones: Path) -> None:
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        for name in CASES:
            theirs, run = SOURCES[name].module(clones, Path(folder), name), (MODULES | MODELS)[name]
            cases[name] = {"source": str(SOURCES[name]), "output": run(theirs, addition(name)).tolist()}
    EXPECTED.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
