"""Several processes extract the same features into one cache: each ends with the right ones."""

import errno
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

from ltlearn import FeatureBank, UserError
from tests.callbacks.helpers import make_dls

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

RIGHT, WRONG, REFUSED, FAILED = 0, 1, 2, 3


class Slow(nn.Module):
    """A backbone that takes its time; `noise` stands for another number of threads."""

    def __init__(self, seconds=0.0, noise=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.seconds, self.noise = seconds, noise

    def forward(self, x):
        time.sleep(self.seconds)
        return x.mean((2, 3)) * self.w + self.noise


@pytest.fixture(scope="module")
def dl():
    return make_dls([60, 30, 6]).train


@pytest.fixture(scope="module")
def good(dl):
    return np.array(FeatureBank(None, "float32").features(Slow(), dl, "data").views[0])


def start(path, dl, good, delay, seconds, prepare=lambda: None):
    """Start a process that extracts the features and compares them; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        prepare()
        time.sleep(delay)
        views = FeatureBank(path, "float32").features(Slow(seconds), dl, "data").views
        code = RIGHT if np.array_equal(views[0], good) else WRONG
    except UserError:
        code = REFUSED
    finally:
        os._exit(code)


def race(path, dl, good, count, kills, seed):
    """Return how the processes ended; a killed one ends with a negative number."""
    rng = random.Random(seed)
    pids = [
        start(path, dl, good, rng.random() * 0.2, 0.002 + rng.random() * 0.02) for _ in range(count)
    ]
    for pid in pids[:kills]:
        time.sleep(rng.random() * 0.1)
        os.kill(pid, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def assert_clean(path):
    (folder,) = (f for f in path.iterdir() if not f.name.endswith(".lock"))
    assert {f.name for f in folder.iterdir()} == {"features.npy", "key.json"}


def test_a_few_processes_on_one_cache(dl, good, tmp_path):
    ends = race(tmp_path, dl, good, count=5, kills=2, seed=3)
    assert ends[2:] == [RIGHT] * 3
    assert set(ends[:2]) <= {RIGHT, -signal.SIGKILL}
    assert_clean(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, 3])
def test_eighty_processes_on_one_cache(dl, good, tmp_path, kills):
    ends = []
    for k in range(8):
        path = tmp_path / str(k)
        ends += race(path, dl, good, count=10 + kills, kills=kills, seed=k)[kills:]
        assert_clean(path)
    assert ends == [RIGHT] * 80


def without_locks():
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    pytest.MonkeyPatch().setattr("ltlearn.utils.locks.FileLock.acquire", refuse)


def test_a_disk_without_locks(dl, good, tmp_path):
    """Both extract; the first one stays."""
    pids = [start(tmp_path, dl, good, 0.03 * k, 0.01, without_locks) for k in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [RIGHT] * 3
    assert_clean(tmp_path)


def test_a_process_keeps_its_array_when_another_replaces_the_folder(dl, good, tmp_path):
    bank = FeatureBank(tmp_path, "float32")
    first = bank.features(Slow(), dl, "data").views[0]
    (folder,) = tmp_path.iterdir()
    note = folder / "key.json"
    note.write_text(note.read_text().replace('"crc": ', '"crc": 1'))
    FeatureBank(tmp_path, "float32").features(Slow(noise=1.0), dl, "data")
    assert np.array_equal(first, good)


def test_an_array_that_another_program_changes_is_not_used(dl, tmp_path):
    class Meddling(Slow):
        def forward(self, x):
            for file in tmp_path.glob("*.part-*/features.npy"):
                np.load(file, mmap_mode="r+")[0] = 0
            return super().forward(x)

    with pytest.raises(UserError, match="feature cache .* change while they are written"):
        FeatureBank(tmp_path, "float32").features(Meddling(), dl, "data")
    assert list(tmp_path.iterdir()) == []
