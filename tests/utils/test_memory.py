import os
import subprocess
import sys

import pytest

from ltlearn.utils import memory

GLIBC = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ())

# Blocks that glibc gives back at once, requested again and again, as a training step does.
FAULTS = """
import resource, sys
import numpy as np
from ltlearn.utils.memory import keep_freed_memory
print(keep_freed_memory())
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**26, np.uint8), np.ones(2**26, np.uint8)
before = faults()
for _ in range(8):
    np.ones(2**26, np.uint8)
print(faults() - before)
"""


def run(code: str, **variables: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_freed_memory_is_used_again():
    kept, faults = run(FAULTS)
    assert kept == "True"
    # 64 MiB are 16384 pages of 4 KiB, or 32 of 2 MiB.
    assert int(faults) < 30


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
        {"MALLOC_TRIM_THRESHOLD_": "65536"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"},
    ],
)
def test_the_environment_goes_first(variables):
    kept, faults = run(FAULTS, **variables)
    assert kept == "False"
    assert int(faults) > 200


@pytest.mark.parametrize("platform", ["darwin", "win32", "linux"])
def test_another_c_library_is_left_alone(monkeypatch, platform):
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())  # it has no mallopt
    assert memory.keep_freed_memory() is False


def test_an_import_changes_nothing():
    kept = run(FAULTS.replace("print(keep_freed_memory())", "print('left')"))
    assert kept[0] == "left"
    if GLIBC:
        assert int(kept[1]) > 200
