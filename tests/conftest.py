"""Settings of every test: offline, one thread, no window; a test that uses the network fails."""

import os

# Before the first import of torch, matplotlib, huggingface_hub and albumentations, which read them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
# A page takes a second, and most tests of runs do not look at it.
os.environ["LTLEARN_PAGES"] = "0"

import ipaddress
import socket

import pytest

from tests.browser import browser, open_page  # noqa: F401 (fixtures)
from tests.compiler import compiler  # noqa: F401 (fixture)


def _is_local(host) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse every connection and name look-up beyond this machine, and fail the test at its end.

    The failure at the end is for code that swallows the first one, or runs in a thread.
    """
    attempts = []

    def check(host):
        if not _is_local(host):
            attempts.append(host)
            pytest.fail(f"this test wants to reach {host!r}; a test may not use the network")

    def guard(method):
        def call(self, *args):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(args[-1][0])  # the address comes last in connect, connect_ex and sendto
            return method(self, *args)

        return call

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, guard(getattr(socket.socket, name)))
    look_up = socket.getaddrinfo

    def guarded_look_up(host, *args, **kwargs):
        check(host)
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield attempts
    if attempts:
        pytest.fail(f"this test wanted to reach {sorted(set(map(str, attempts)))}")
