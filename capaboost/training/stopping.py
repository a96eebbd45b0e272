"""After SIGTERM or SIGINT a run finishes its step, saves and ends, all its processes at the same step."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed as dist

from capaboost_core.errors import Stopped

SAVE = 1  # below every signal that is caught
SAVE_SECONDS = 600.0
BURST_SECONDS = 1.0  # a launcher repeats a signal that the terminal has sent to all processes already
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SignalGuard:
    """Notes signals while it is open; the loop calls `poll` after each step.

    A second signal, a second or more after the first, stops at once.

    Args:
        processes: The number of the run's processes; several agree over the host, so that none waits for a device.
    """

    def __init__(self, processes: int):
        self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if processes > 1 else None
        self.number, self.noted, self.saved = 0, 0.0, time.monotonic()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> SignalGuard:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self.noted = number, now
        elif now - self.noted > BURST_SECONDS:
            raise Stopped(number)

    def poll(self) -> int:
        """What every process does next: 0 is to go on, SAVE to save, another number to end by that signal.

        Without a signal, a save is due every ten minutes.
        """
        late = time.monotonic() - self.saved > SAVE_SECONDS
        wish = self.number or (SAVE if late else 0)
        if self.group is None:
            return wish
        agreed = torch.tensor(wish)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.group)
        return int(agreed)

    def gather(self, mine: Any) -> list[Any]:
        """Every process's object, in the order of the processes."""
        if self.group is None:
            return [mine]
        every: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(every, mine, group=self.group)
        return every
