"""Options of the suite: how long the generated cases run, where their counts go, and what stands for a GPU."""

import multiprocessing
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.hard import counts

COMMON = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ordinary", settings(max_examples=25, **COMMON))
settings.register_profile("hard", settings(max_examples=300, **COMMON))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hard cases")
    group.addoption("--hard", action="store_true", help="the long profile: more generated cases, more kills")
    group.addoption("--hard-report", type=Path, metavar="FILE", help="write the counts of generated cases as JSON")
    help_device = "of tests/gpu, which are skipped where it is not; cpu rehearses them"
    parser.getgroup("GPU").addoption("--device", default="cuda", choices=("cuda", "cpu"), help=help_device)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile(_profile(config))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell begins with it ignored


def pytest_sessionfinish(session: pytest.Session) -> None:
    for process in multiprocessing.active_children():  # of tests that failed
        process.kill()
    file = session.config.getoption("--hard-report")
    if file:
        counts.write(file, _profile(session.config), session.testscollected, session.testsfailed)


@pytest.fixture(autouse=True)
def _nothing_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's worker in the process of the tests would keep decoded images for those that follow."""
    monkeypatch.setattr("capaboost_core.task._made", None)


@pytest.fixture(scope="session")
def is_hard(pytestconfig: pytest.Config) -> bool:
    """Whether the long profile runs."""
    return pytestconfig.getoption("--hard")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, CoLA and SQuAD v1.1, all tiny; tests read it only."""
    from tests.text.tiny_tasks import write_tasks  # here, since it imports transformers

    return write_tasks(tmp_path_factory.mktemp("text"))


def _profile(config: pytest.Config) -> str:
    return "hard" if config.getoption("--hard") else "ordinary"
