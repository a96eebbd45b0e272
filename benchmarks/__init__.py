"""Speed and memory beside peers. Each command is a module: `python -m benchmarks.step --help`."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is loaded: its profiler else writes of every stage
