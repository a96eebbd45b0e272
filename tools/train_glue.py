"""`capaboost train-glue` from a checkout: accelerate launch tools/train_glue.py --task cola"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout that is not installed

from capaboost.commands.train_glue import main

if __name__ == "__main__":
    sys.exit(main())
