"""One student in two forms, and one ARM64 userland, for all devices."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gallery.errors import MissingBackend
from mobile_eval.devices.setup import default_folder, out_of_date_reason, set_up_arm64
from tests.mobile_eval.devices.handset import Handset, exported


@pytest.fixture(scope="session")
def handset(tmp_path_factory: pytest.TempPathFactory) -> Handset:
    return exported(tmp_path_factory.mktemp("handset"))


@pytest.fixture(scope="session")
def userland(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's own where there is one, or else made from nothing, as a first user does."""
    if not out_of_date_reason(default_folder("arm64")):
        return default_folder("arm64")
    try:
        return set_up_arm64(tmp_path_factory.mktemp("userland") / "arm64")
    except MissingBackend as error:
        if os.geteuid() == 0 and shutil.which("apt-get"):
            raise
        pytest.skip(f"no ARM64 userland, and none can be set up here: {error}")
