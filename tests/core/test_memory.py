"""When memory ends: one line with what to lower, whoever allocates."""

import errno

import numpy as np
import pytest
import torch

from capaboost.exit_code import exit_code_of
from capaboost_core import UserError
from capaboost_core.errors import is_no_memory


def raises(error: BaseException):
    def act() -> None:
        raise error

    return act


ENDS = {  # who allocates: an act that fails, for real where a CPU can
    "Python": lambda: bytearray(2**62),
    "NumPy": lambda: np.zeros(2**60, np.uint8),
    "torch on the CPU": lambda: torch.empty(2**60, dtype=torch.uint8),
    "torch on a GPU": raises(
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")
    ),
    "the driver": raises(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously")),
    "cuBLAS": raises(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    "C++": raises(RuntimeError("std::bad_alloc")),
    "the system": raises(OSError(errno.ENOMEM, "Cannot allocate memory")),
}


@pytest.mark.parametrize("who", ENDS)
def test_the_end_of_memory_is_one_line(who, capsys):
    assert exit_code_of(ENDS[who], "goes on") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory (")
    assert "train.gradient_accumulation_steps=2" in line


OTHERS = [RuntimeError("shape mismatch"), ValueError("out of memory"), UserError("out of memory?"), KeyError("memory")]


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_no_memory(error)
