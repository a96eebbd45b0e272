"""Accelerate keeps its state for the life of a process; each test of methods starts it anew, on the CPU."""

from tests.core.conftest import fresh_accelerate  # noqa: F401
