"""A host that does not answer is noticed in seconds, by a socket of this machine and none of the network."""

import socket
import time
from threading import Event
from types import SimpleNamespace

import pytest

from capaboost_core import network
from capaboost_core.network import is_reachable, offline_unless_reachable

NONE = "http://host.invalid"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_host_that_listens_is_reachable(port):
    assert is_reachable(f"http://127.0.0.1:{port}/some/path")


@pytest.mark.parametrize("url", [NONE, "http://127.0.0.1:1", f"http://{'a' * 70}.org", "http://"])
def test_a_host_that_does_not_is_not(url):
    assert not is_reachable(url)


@pytest.mark.hard_case("messages")
def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch):
    answered = Event()

    def hang(*_):
        answered.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    begun = time.monotonic()
    assert not is_reachable(NONE, 0.2)
    answered.set()
    assert time.monotonic() - begun < 10


def test_a_proxy_stands_for_the_host(monkeypatch, port):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert is_reachable(NONE)
    monkeypatch.setenv("no_proxy", "host.invalid")
    assert not is_reachable(NONE)


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize(
    ("reachable", "before", "within"), [(True, False, False), (False, False, True), (True, True, True)]
)
def test_a_client_is_offline_only_meanwhile(reachable, before, within, monkeypatch):
    monkeypatch.setattr(network, "is_reachable", lambda url: reachable)
    first, second = SimpleNamespace(HF_HUB_OFFLINE=before), SimpleNamespace(HF_HUB_OFFLINE=False)
    with offline_unless_reachable(NONE, first, second):
        inside = (first.HF_HUB_OFFLINE, second.HF_HUB_OFFLINE)
    assert inside == (within, within)
    assert (before, False) == (first.HF_HUB_OFFLINE, second.HF_HUB_OFFLINE)
