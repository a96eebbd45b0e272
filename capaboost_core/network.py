"""Check within seconds whether a host answers, since the clients of hubs retry for a minute without a network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

TIMEOUT = 3.0  # seconds


def is_reachable(url: str, seconds: float = TIMEOUT) -> bool:
    """Whether the host of the URL, or the proxy that the environment names for it, accepts a connection."""
    host, port = _address(url)
    found: list[bool] = []
    # The resolver has no time limit, so the attempt runs in a thread that may outlive this call.
    attempt = Thread(target=lambda: found.append(_connects(host, port, seconds / 2)), daemon=True)
    attempt.start()
    attempt.join(seconds)
    return found == [True]


@contextmanager
def offline_unless_reachable(url: str, *modules: ModuleType) -> Iterator[None]:
    """Within the context, modules of a hub's client have `HF_HUB_OFFLINE` set if the hub does not answer or one had.

    The client then uses its cache, or fails at once.
    """
    before = [vars(module)["HF_HUB_OFFLINE"] for module in modules]
    offline = any(before) or not is_reachable(url)
    try:
        for module in modules:
            vars(module)["HF_HUB_OFFLINE"] = offline
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            vars(module)["HF_HUB_OFFLINE"] = value


def _address(url: str) -> tuple[str, int]:
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.netloc):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or {"https": 443, "socks5": 1080}.get(parts.scheme, 80)


def _connects(host: str, port: int, seconds: float) -> bool:
    """Whether one of the host's addresses accepts a connection, each within the given time."""
    try:
        socket.create_connection((host, port), seconds).close()
    except (OSError, ValueError):
        return False
    return True
