"""What tests of several packages use: the command line in this process, and a terminal."""

import io
import os
import re
import sys
from collections import namedtuple

import pytest

from ltlearn.cli.app import main

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-c", "from ltlearn.cli.app import main; main()"]
TINY = [
    "recipe", "digits_lt", "--seeds", "1", "--set", "model.width=4", "--set", "stage1.epochs=2",
    "--set", "stage2.epochs=2", "--device", "cpu",
]  # fmt: skip

Done = namedtuple("Done", "returncode stdout stderr")


def ltlearn(*words, cwd=None, env=None):
    """Run the command line in this process, as if typed; importing fastai anew takes seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ltlearn", *map(str, words)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        for key, value in (env or {}).items():
            patch.setenv(key, value)
        if cwd is not None:
            patch.chdir(cwd)
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
    return Done(code, out.getvalue(), err.getvalue())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def without_colour(text):
    return re.sub("\x1b\\[[0-9;]*m", "", text)
