"""A student, briefly trained and exported once for all tests of this folder."""

from __future__ import annotations

import pytest

from export.exporter import select_variants
from tests.export.factories import Shipped, Student, exported, taught


@pytest.fixture(scope="session")
def v3() -> Student:
    return taught("mobilenetv3_small_100")


@pytest.fixture(scope="session")
def shipped(v3: Student, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """MobileNetV3-small in every default form and in float Core ML."""
    return exported(v3, (*select_variants(("onnx", "litert", "coreml")), "coreml-fp32"), tmp_path_factory.mktemp("v3"))
