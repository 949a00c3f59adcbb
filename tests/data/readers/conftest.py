"""Fixtures of the tests of readers."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _log_level(caplog):
    caplog.set_level(logging.WARNING, "ltlearn")
