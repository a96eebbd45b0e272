"""The processes of a run: whether they are linked, their device, how long idle threads spin, and which one prints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from capaboost.console import tell
from capaboost_core.errors import UserError

if TYPE_CHECKING:  # a command that ends with a wrong setting does not import it
    import torch
    from accelerate import Accelerator

Found = TypeVar("Found")
ADVICE = "use plain data parallelism (torchrun, or accelerate launch --multi_gpu), FSDP2, or one process"
ERRORS_PRINTED = "capaboost/errors printed"  # the name of a counter


def check_engine() -> None:
    """Refuse a launcher's engine that training does not run under, before accelerate starts it.

    Raises:
        UserError: If the launcher asks for DeepSpeed or Megatron-LM.
    """
    for name in ("DeepSpeed", "Megatron_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() in ("true", "1"):
            raise UserError(f"the training commands do not run under {name.replace('_', '-')}; {ADVICE}")


def link_on_cpus() -> None:
    """Let accelerate link the started processes over CPUs where torch knows no other device: it does so only if asked.

    A choice of the user's stands.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def check_launch(accelerator: Accelerator) -> None:
    """Refuse processes that are not linked: each would train alone, in one folder. Warn if only one was started.

    Raises:
        UserError: If the launcher started more processes than accelerate counts.
    """
    started, counted = int(os.environ.get("WORLD_SIZE", "1")), accelerator.num_processes
    if started != counted:
        raise UserError(
            f"{started} processes were started, but accelerate sees {counted} and none would know of the others; "
            "on CPUs set ACCELERATE_USE_CPU=true, or start one process"
        )
    if counted == 1 and _several_were_asked():
        tell(
            "warning: accelerate launch was asked for several processes and started one; on CPUs type torchrun "
            "--nproc_per_node 2 tools/train_vtab.py ..., on GPUs accelerate launch --multi_gpu"
        )


def _several_were_asked() -> bool:
    """Whether `accelerate launch` was asked for several processes, but took its launcher of one.

    It then exports where they should meet, and no number of processes.
    """
    return {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ


def checked_device(name: str | torch.device) -> torch.device:
    """The device of a name, such as cuda:1.

    Raises:
        UserError: If this machine does not have it.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not available here; type cpu, or a device of this machine") from error
    return torch.device(name)


@contextmanager
def on_device(name: str | None) -> Iterator[None]:
    """Runs that begin within it take the device; without a name accelerate chooses one.

    Raises:
        UserError: If this machine does not have it, or several processes would share it.
    """
    if name is None:
        yield
        return
    device, before = checked_device(name), dict(os.environ)
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"--device {name} is one device for several processes; leave it out, so that each has its own")
    else:
        os.environ |= {"ACCELERATE_USE_CPU": "false", "ACCELERATE_TORCH_DEVICE": name}
        if device.index is not None:
            import torch

            torch.accelerator.set_device_index(device.index)
    try:
        yield
    finally:
        for variable in ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"):
            os.environ.pop(variable, None)
            os.environ |= {variable: before[variable]} if variable in before else {}


def wait_policy(side_by_side: bool = False) -> dict[str, str]:
    """What a process adds to its environment before it imports torch: where cores are shared, idle threads sleep.

    The threads of an operator spin while they wait for the next one. On cores that others use too, a step then takes
    several times as long; on an idle machine sleeping instead costs up to 15 %. A choice of the user's stands.

    Args:
        side_by_side: Whether further such processes work on this machine; if not, the load of the last minute decides.
    """
    if any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        return {}
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wanted) if wanted.isdecimal() else len(os.sched_getaffinity(0))
    crowded = threads + os.getloadavg()[0] > (os.cpu_count() or 1) + 0.5
    return {"OMP_WAIT_POLICY": "passive"} if side_by_side or crowded else {}


def on_main(find: Callable[[], Found]) -> Found | None:
    """The result of the main process, None in the others; its UserError is raised in all.

    Raises:
        UserError: The main process's.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    found, refusal = None, None
    if PartialState().is_main_process:
        try:
            found = find()
        except UserError as error:
            refusal = error
    message: list[Any] = [str(refusal) if refusal else None]
    broadcast_object_list(message)
    if message[0] is not None:
        raise refusal or UserError(message[0])
    return found


def is_first() -> bool:
    """Whether this is the process that prints for all, before there is any state of processes."""
    return os.environ.get("RANK", "0") == "0"


def prints_error() -> bool:
    """Whether this process prints its error: of the processes of a run that fail, the first one does."""
    printed = _errors_printed(1)
    return is_first() if printed is None else printed == 1


def another_printed_error() -> bool:
    """Whether another process has printed an error, after which this one lost its peer."""
    return bool(_errors_printed(0))


def _errors_printed(more: int) -> int | None:
    """Add to the number of errors that the linked processes have printed, and return it; None where none are linked.

    Which process fails first is not known before, and the launcher may end the others at once: so a counter in the
    store of the process group decides, or before there is a group one in the launcher's store.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        if dist.is_initialized():
            store = dist.distributed_c10d._get_default_store()
        elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = next(rendezvous("env://", timeout=timedelta(seconds=10)))[0]
        else:
            return None
        return store.add(ERRORS_PRINTED, more)
    except (RuntimeError, ValueError, KeyError):  # the store cannot be reached
        return None
