"""Two students, briefly trained and exported once for all tests of this folder."""

from __future__ import annotations

import pytest
from students import Shipped, Student, exported, taught

from export.artifact import DEFAULT_FORMS


@pytest.fixture(scope="session")
def v3() -> Student:
    return taught("mobilenetv3_small_100")


@pytest.fixture(scope="session")
def shipped(v3: Student, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """MobileNetV3-small in every default form and in float Core ML."""
    return exported(v3, (*DEFAULT_FORMS, "coreml-fp32"), tmp_path_factory.mktemp("v3"))


@pytest.fixture(scope="session")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """EfficientNet-lite0 with TensorFlow's one-sided padding and ReLU6, a form or two a format."""
    forms = (
        "onnx-fp32",
        "onnx-int8-weights",
        "litert-fp32",
        "litert-int8-weights",
        "coreml-fp16",
        "coreml-int8-weights",
    )
    return exported(taught("tf_efficientnet_lite0"), forms, tmp_path_factory.mktemp("lite"))
