"""One small bundle for all tests of this folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.mobile_eval.bundles import Call, Good


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    from tests.mobile_eval.bundles import good_bundle  # loads torch, which most tests here can do without

    return good_bundle(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="session")
def module() -> Any:
    """`mobile_eval/run.py`; as a script it would keep the place in front of the path that it takes when loaded."""
    first = sys.path[0]
    import mobile_eval.run

    sys.path[0] = first
    return mobile_eval.run


@pytest.fixture
def call(module: Any, heard: Any) -> Call:
    """The command line in this process: exit code and what it logged."""
    found: Call = heard(module.main)
    return found
