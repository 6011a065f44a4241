"""Core ML (.mlpackage, ML Program, iOS 16, macOS 13 or later; 17 and 14 with 8-bit activations): image in, batch 1."""

import json
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.artifact import KEY, SMALL_WEIGHTS, ExportedModel, ModelMetadata, check_layers
from export.description import authorship, describe_tensors, summarize
from export.fake_quant import QDQConv2d
from export.metadata import SPEC, coreml_spec
from export.query_model import QueryModel
from gallery.files import atomic_path

FORMAT, SUFFIX, LAYOUT = "coreml", ".mlpackage", "image"
PRECISIONS = ("fp32", "fp16", "w8a32", "w8a8", "palettize6")
QDQ_STYLE = {"stored": True, "signed": True}
_ATEN: Any = torch.ops.aten
_VIEWS = {  # the same numbers where the shape is the same
    _ATEN.alias, _ATEN.detach, _ATEN.lift_fresh_copy, _ATEN.expand, _ATEN.slice, _ATEN.view, _ATEN._unsafe_view,
    _ATEN.repeat, _ATEN.squeeze,
}  # fmt: skip
_DATED = "com.github.apple.coremltools.conversion_date"


class ExportedPrograms:
    """A query model as torch.export sees it, and its ML Programs: float32 and float16 are separate conversions."""

    def __init__(self, model: QueryModel) -> None:
        self.size, self.converted = model.size, cache(self._convert)
        weighted = {n: m for n, m in model.net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        self.layers = list(weighted)
        self.integers = any(isinstance(m, QDQConv2d) for m in model.modules())
        self.depthwise = [name for name, m in weighted.items() if isinstance(m, nn.Conv2d) and m.groups > 1]
        pixels = torch.zeros(1, 3, model.size, model.size)
        exported = torch.export.export(_ImageGraph(model).eval(), (pixels,)).run_decompositions({})
        self.exported = remove_identities(exported)

    def stored(self, precision: str, float_layers: Sequence[str]) -> Any:
        """Return the program of a precision; but for fp32 activations are fp16, and the larger weights are as it says.

        "w8a32": int8 with one scale per output channel.  "palettize6": 64 values of one k-means table a
        layer, depthwise layers kept in float: of a trained MobileNetV3-small on imagenet20, 6 bits so flipped 2.7 % of
        the bits instead of 5.7 %.  A float head changed nothing.
        """
        program = self.converted("fp32" if precision == "fp32" else "fp16")
        if precision in ("fp32", "fp16"):
            return program
        from coremltools.optimize import coreml as optimize

        left = [*float_layers, *(self.depthwise if precision.startswith("palettize") else [])]
        kept = {f"p_query_net_{layer.replace('.', '_')}_weight_to_fp16": None for layer in left}
        if not precision.startswith("palettize"):
            rule = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALL_WEIGHTS)
            return optimize.linear_quantize_weights(program, optimize.OptimizationConfig(rule, op_name_configs=kept))
        bits = int(precision.removeprefix("palettize"))
        table = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=SMALL_WEIGHTS)
        return optimize.palettize_weights(program, optimize.OptimizationConfig(table, op_name_configs=kept))

    def _convert(self, precision: str) -> Any:
        import coremltools as ct

        image = ct.ImageType("image", (1, 3, self.size, self.size), color_layout=ct.colorlayout.RGB)
        return ct.convert(
            self.exported, convert_to="mlprogram", inputs=[image], skip_model_load=True,
            outputs=[ct.TensorType("codes", dtype=np.int32), ct.TensorType("logits", dtype=np.float32)],
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            minimum_deployment_target=ct.target.iOS17 if self.integers else ct.target.iOS16,
        )  # fmt: skip


def convert(model: QueryModel) -> ExportedPrograms:
    """Export the graph, from which each precision is converted when asked for."""
    return ExportedPrograms(model)


def write(programs: ExportedPrograms, metadata: ModelMetadata, path: Path) -> ExportedModel:
    """Pick the program of `metadata.precision`, embed the metadata, and write the package."""
    check_layers(metadata.float_layers, programs.layers)
    program = programs.stored(metadata.precision, metadata.float_layers)
    _describe(program, metadata)
    with atomic_path(path) as draft:
        program.save(str(draft))
        _make_reproducible(draft)
    return ExportedModel.of(path, FORMAT, metadata)


def _describe(program: Any, metadata: ModelMetadata) -> None:
    """Embed the metadata, and fill in the fields that Xcode shows."""
    program.user_defined_metadata[KEY] = metadata.to_json()
    program.short_description = summarize(metadata)
    for name, text in authorship(metadata).items():
        setattr(program, name, text)
    for name, text in describe_tensors(metadata).items():
        (program.input_description if name == "image" else program.output_description)[name] = text


class _ImageGraph(nn.Module):
    """Pixels 0..255 as Core ML hands over an image, float `[1, 3, S, S]`."""

    def __init__(self, query: QueryModel) -> None:
        super().__init__()
        self.query = query

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.query.logits(pixels)
        return self.query.pack(logits).to(torch.int32), logits


def remove_identities(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace, in place, views that change nothing by what they view: coremltools knows no `aten.alias`."""
    graph = program.graph
    for node in list(graph.nodes):
        if getattr(node.target, "overloadpacket", None) not in _VIEWS:
            continue
        source = node.args[0]
        before, after = source.meta["val"], node.meta["val"]
        if before.shape == after.shape and before.dtype == after.dtype:
            program.graph_signature.replace_all_uses(node.name, source.name)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _make_reproducible(package: Path) -> None:
    """Drop the debug map, the date, random item names, the order of protobuf maps, and owner-only permissions."""
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    spec = coreml_spec(package)
    spec.description.metadata.userDefined.pop(_DATED, None)
    (package / SPEC).write_bytes(spec.SerializeToString(deterministic=True))
    listing = (package / "Manifest.json").read_text()
    for name, item in json.loads(listing)["itemInfoEntries"].items():
        listing = listing.replace(name, str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])))
    # in the form in which coremltools writes it again when it opens the package on Linux
    (package / "Manifest.json").write_text(json.dumps(json.loads(listing), indent=4, sort_keys=True) + "\n")
    for item in package.rglob("*"):
        item.chmod(0o755 if item.is_dir() else 0o644)
