"""One small bundle for all tests of this folder."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from gallery.console import log

if TYPE_CHECKING:
    from bundles import Call, Good


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    from bundles import good_bundle  # loads torch, which most tests here can do without

    return good_bundle(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="session")
def proving() -> Any:
    """`mobile_eval/run.py`; as a script it would keep the place in front of the path that it takes when loaded."""
    first = sys.path[0]
    import mobile_eval.run

    sys.path[0] = first
    return mobile_eval.run


@pytest.fixture
def call(proving: Any) -> Iterator[Call]:
    """The command line in this process: exit code and what it logged."""
    said, propagate = io.StringIO(), log.propagate
    handler = logging.StreamHandler(said)
    log.addHandler(handler)

    def run(*words: object) -> tuple[int, str]:
        said.truncate(said.seek(0))
        return proving.main([str(word) for word in words]), said.getvalue()

    yield run
    log.removeHandler(handler)
    log.propagate = propagate
