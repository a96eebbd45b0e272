"""`capaboost train-lm` from a checkout: accelerate launch tools/train_lm.py book.txt"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout that is not installed

from capaboost.commands.train_lm import main

if __name__ == "__main__":
    sys.exit(main())
