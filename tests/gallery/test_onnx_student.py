"""A model of another version of Twinhash is refused in words that say what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from gallery.codes import KEY
from gallery.errors import CorruptFile
from gallery.files import sha256_of, write_json
from gallery.onnx_student import AGREED, LAYOUTS, OnnxStudent

ABOUT = {"code_space": "0" * 16, "size": 2, "bits": 16, "layout": LAYOUTS[0], **AGREED}


def bundle_of(folder: Path, about: dict[str, Any]) -> Path:
    """A bundle whose model returns its input."""
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, [1, 2]) for name in ("image", "codes")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["codes"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {KEY: json.dumps(about)})
    onnx.save(model, path := folder / "query-fp32.onnx")
    write_json(folder / "manifest.json", {"files": {path.name: {"sha256": sha256_of(path)}}})
    return folder


def test_what_agrees_is_opened(tmp_path: Path) -> None:
    assert OnnxStudent(bundle_of(tmp_path, ABOUT)).code_space == "0" * 16


@pytest.mark.parametrize("name", [*AGREED, "layout"])
@pytest.mark.parametrize("there", [True, False])
def test_another_rule_or_none_is_named(tmp_path: Path, name: str, there: bool) -> None:
    about = {one: value for one, value in ABOUT.items() if one != name} | ({name: "another"} if there else {})
    with pytest.raises(CorruptFile, match="another layout, colour order, bit rule or rule of preprocessing"):
        OnnxStudent(bundle_of(tmp_path, about))
