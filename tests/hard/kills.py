"""A command that is killed at a random moment, within the writing of its files too."""

import random
import signal
import time
from pathlib import Path

from tests import commands

PLACES = ("replace-before", "replace-after", "fsync-before", "fsync-after", "open-after")
WITHIN_WRITING = 0.6  # share of the kills


def die(folder: Path, chance: random.Random, command: list[str]) -> bool:
    """Start or go on with the run in the folder, and kill it; whether it was killed before it ended."""
    command = [*command, "--output-dir", str(folder), "--resume"]
    if chance.random() < WITHIN_WRITING:
        at = ["-m", "tests.killed", chance.choice(PLACES), str(chance.randint(1, 12))]
        process = commands.start(*at, *command)
    else:
        process = commands.start(*command)
        while process.poll() is None and not folder.exists():
            time.sleep(0.02)
        time.sleep(2 * chance.random())
        process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=400)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode != 0
