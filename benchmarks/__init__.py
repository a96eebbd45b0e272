"""Speed and memory compared with other implementations; each command is a module, as `benchmarks.step`."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is loaded: its profiler else writes of every stage
