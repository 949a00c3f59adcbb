import sys
from pathlib import Path

import pytest
import torch

from ltlearn.utils import environment
from ltlearn.utils.environment import environment_info
from ltlearn.utils.run_folder import Run

ROOT = Path(__file__).parents[2]


def test_environment_info_can_be_written(tmp_path):
    run = Run(tmp_path)
    info = environment_info()
    run.write_json("e.json", info)
    assert run.read_json("e.json") == info
    assert info["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert info["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert info["threads"] == torch.get_num_threads()
    assert info["cpu_count"] >= 1 and info["device"] and info["platform"]


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "_PACKAGES", ("no-such-package-here",))
    assert environment_info()["versions"]["no-such-package-here"] is None


def test_an_optional_package_is_named_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(environment, "_OPTIONAL", ("no-such-package-here", "pytest"))
    versions = environment_info()["versions"]
    assert versions["pytest"] == pytest.__version__
    assert "no-such-package-here" not in versions
