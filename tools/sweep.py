"""`capaboost sweep` from a checkout: python tools/sweep.py configs/sweeps/digits.yaml"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout that is not installed

from capaboost.commands.sweep import main

if __name__ == "__main__":
    sys.exit(main())
