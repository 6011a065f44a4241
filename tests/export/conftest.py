"""A student, briefly trained and exported once for all tests of this folder."""

from __future__ import annotations

import pytest

from export.exporter import select_variants
from tests.export.factories import Exports, Student, export_student, train_student


@pytest.fixture(scope="session")
def v3() -> Student:
    return train_student("mobilenetv3_small_100")


@pytest.fixture(scope="session")
def exports(v3: Student, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """MobileNetV3-small in every default variant and in float Core ML."""
    return export_student(
        v3, (*select_variants(("onnx", "litert", "coreml")), "coreml-fp32"), tmp_path_factory.mktemp("v3")
    )
