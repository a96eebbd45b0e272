"""`capaboost compare` from a checkout: python tools/compare.py --dataset digits --methods lora,capaboost-lora"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of a checkout that is not installed

from capaboost.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
