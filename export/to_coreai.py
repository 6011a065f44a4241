"""Core AI (.aimodel; iOS 27, macOS 27 or later), Apple's format after Core ML: batch 1.  Needs the extra "coreai"."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.artifact import KEY, ExportedModel, ModelMetadata
from export.metadata import COREAI_ABOUT, COREAI_OWN, import_backend
from export.query_model import QueryModel
from gallery.files import atomic_path

FORMAT, SUFFIX, LAYOUT = "coreai", ".aimodel", "NHWC uint8"
PRECISIONS = ("fp32", "fp16")
QDQ_STYLE = {"stored": True, "signed": True}


def convert(model: QueryModel) -> QueryModel:
    """Return the model itself: each precision is a conversion of its own."""
    return model


def write(program: QueryModel, metadata: ModelMetadata, path: Path) -> ExportedModel:
    """Convert at `metadata.precision`, embed the metadata, write the asset; `MissingBackend` without the extra."""
    converted = _converted(program if metadata.precision == "fp32" else _halved(program))
    with atomic_path(path) as draft:
        converted.save_asset(draft)
        about = json.loads((draft / COREAI_ABOUT).read_text())
        about.pop("creationDate")  # two exports shall be equal; but the converter names hard sigmoids at random
        about[COREAI_OWN] = {KEY: metadata.to_json()}
        (draft / COREAI_ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    return ExportedModel.of(path, FORMAT, metadata)


def _converted(model: QueryModel) -> Any:
    coreai = import_backend("coreai_torch")
    exported = torch.export.export(model, (model.example(),)).run_decompositions(coreai.get_decomp_table())
    converter = coreai.TorchConverter(mode=coreai.TorchConverter.Mode.RELEASE)  # the other keeps this machine's paths
    names = {"input_names": ["image"], "output_names": ["codes", "logits"]}
    return converter.add_exported_program(exported, **names).to_coreai()


def _halved(model: QueryModel) -> QueryModel:
    """Copy the model with its network in float16; normalisation and packing stay float32."""
    halved = copy.deepcopy(model)
    halved.net = _Half(halved.net)
    return halved.eval()


class _Half(nn.Module):
    """Layers cast what they are given, wherever the network itself asks for float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.half()
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_pre_hook(lambda module, given: (given[0].half(),))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.half()).float()
        return logits
