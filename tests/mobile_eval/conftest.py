"""One small bundle for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gallery.errors import MissingBackend
from tests.conftest import import_script

if TYPE_CHECKING:
    from tests.mobile_eval.bundles import Call, Good

OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "E403", "resolv", "onnection")


@pytest.fixture(scope="session")
def engines(pytestconfig: pytest.Config) -> Path:
    """The browser's engines, set up as the command does it, in pytest's cache."""
    from mobile_eval.devices.setup import set_up_browser

    assert pytestconfig.cache is not None
    try:
        return set_up_browser(Path(pytestconfig.cache.mkdir("browser")))
    except MissingBackend as error:
        if "sudo" in error.fix or any(sign in error.found for sign in OFFLINE):
            pytest.skip(f"Chromium and its engines cannot be had here: {error.found}")
        raise


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    from tests.mobile_eval.bundles import good_bundle  # loads torch, which most tests here can do without

    return good_bundle(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="session")
def module() -> Any:
    """`mobile_eval/run.py`."""
    return import_script("mobile_eval.run")


@pytest.fixture
def call(module: Any, heard: Any) -> Call:
    """The command line in this process: exit code and what it logged."""
    found: Call = heard(module.main)
    return found
