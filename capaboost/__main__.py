"""`python -m capaboost`, also for `accelerate launch -m capaboost train-vtab ...`."""

import sys

from capaboost.cli import main

if __name__ == "__main__":
    sys.exit(main())
