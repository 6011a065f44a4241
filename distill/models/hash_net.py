"""Networks: any timm backbone, a hash head, and the names people use for them."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from distill.registry import did_you_mean
from gallery.errors import InputError

# Short names; the first timm name with available weights is taken, the first one of all when none has any.
SHORT_NAMES: dict[str, tuple[str, ...]] = {
    "vit_b": ("vit_base_patch16_224",), "vit_s": ("vit_small_patch16_224",), "vit_t": ("vit_tiny_patch16_224",),
    "dinov2_b": ("vit_base_patch14_dinov2",), "dinov2_s": ("vit_small_patch14_dinov2",),
    "convnext_t": ("convnext_tiny",),
    "efficientnet_lite0": ("tf_efficientnet_lite0", "efficientnet_lite0"),
    "efficientnet_lite1": ("tf_efficientnet_lite1", "efficientnet_lite1"),
    "efficientnet_lite2": ("tf_efficientnet_lite2", "efficientnet_lite2"),
    "mobilenetv2": ("mobilenetv2_100",),
    "mobilenetv3": ("mobilenetv3_large_100", "tf_mobilenetv3_large_100"),
    "mobilenetv3_large": ("mobilenetv3_large_100", "tf_mobilenetv3_large_100"),
    "mobilenetv3_small": ("mobilenetv3_small_100", "tf_mobilenetv3_small_100"),
    "mobilenetv4": ("mobilenetv4_conv_small",),
}  # fmt: skip


class HashHead(nn.Sequential):
    """Features `[B, D]` to logits `[B, bits]`: a 1x1 convolution without bias, weights N(0, 0.01), and batch norm.

    CSCH's head (Linear + BatchNorm1d) in its 4D form: the same numbers, and one layer once folded for export.
    Batch norm centres every bit, so that each is set for about half of the images.
    """

    def __init__(self, features: int, bits: int) -> None:
        conv = nn.Conv2d(features, bits, 1, bias=False)
        nn.init.normal_(conv.weight, 0.0, 0.01)
        super().__init__(conv, nn.BatchNorm2d(bits), nn.Flatten())
        self.features = features

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features[:, :, None, None])


class HashNet(nn.Module):
    """Normalised images `[B, 3, S, S]` to logits `[B, bits]`; the code is their sign."""

    def __init__(self, backbone: nn.Module, features: int, bits: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, HashHead(features, bits)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images).float())
        return logits


def build(name: str, size: int, bits: int, seed: int) -> HashNet:
    """A `HashNet` on timm's `name` for square inputs of `size` pixels, initialized from `seed`.

    The global random state is left as it was.  Raises `InputError` when the network cannot take that size.
    """
    check_timm_name(name)
    timm = import_timm()
    cfg = timm.get_pretrained_cfg(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            fixed = {"img_size": size} if cfg and cfg.fixed_input_size else {}
            backbone = timm.create_model(name, num_classes=0, **fixed)
            if size % patch_size(backbone):
                raise ValueError(f"patches of {patch_size(backbone)} px")
            with torch.no_grad():
                shape = backbone.eval()(torch.zeros(1, 3, size, size)).shape
            if len(shape) != 2:
                raise ValueError(f"its output has shape {tuple(shape)}, not (1, features)")
            return HashNet(backbone.train(), int(shape[1]), bits)
        except (AssertionError, RuntimeError, ValueError) as error:
            step = max(16, patch_size(create_meta_model(name)))
            hint = f"Choose a multiple of {step}, e.g. {4 * step} or {8 * step}."
            raise InputError(f"an image size that {name} can take", f"{size} px ({error})", hint) from error


def timm_names(name: str) -> tuple[str, ...]:
    """The timm names that `name` may stand for, best first; raises `InputError` with close matches."""
    timm = import_timm()
    names = tuple(filter(_is_known, SHORT_NAMES.get(name, (name,))))
    if names:
        return names
    hint = did_you_mean(name, [*SHORT_NAMES, *timm.list_models()], f"Short names: {', '.join(SHORT_NAMES)}.")
    raise InputError("a network that timm knows, or a short name", repr(name), hint)


def check_timm_name(name: object) -> str:
    """Return the name of a network that timm knows itself, maybe with the tag of its weights.

    Raises `InputError` for any other, e.g. "hf-hub:..." or "local-dir:...", which timm would fetch or read: names come
    from files.
    """
    if not isinstance(name, str) or not _is_known(name):
        raise InputError("the name of a network that timm knows", repr(name)[:200], "Name another network.")
    return name


def _is_known(name: str) -> bool:
    """Whether timm has a network of that name, and the tag of its weights where one is given."""
    timm = import_timm()
    return bool(timm.is_model_pretrained(name) if "." in name else timm.is_model(name))


def patch_size(backbone: nn.Module) -> int:
    """What a transformer's input is a multiple of, pixels: its patches, or blocks of them; 1 for networks without."""
    size = getattr(backbone, "input_step", getattr(getattr(backbone, "patch_embed", None), "patch_size", 1))
    return int(size[0] if isinstance(size, (tuple, list)) else size)


def create_meta_model(name: str) -> nn.Module:
    """timm's `name` without a classifier and without memory behind its tensors."""
    check_timm_name(name)
    with torch.device("meta"):
        net: nn.Module = import_timm().create_model(name, num_classes=0)
    return net


def is_transformer(net: nn.Module) -> bool:
    """Whether most parameters sit in linear layers, as in transformers: bf16 pays there, also on CPUs."""
    linear = sum(p.numel() for m in net.modules() if isinstance(m, nn.Linear) for p in m.parameters(recurse=False))
    return linear > 0.5 * sum(p.numel() for p in net.parameters())


_declared: list[torch.library.Library] = []  # a declaration lives as long as its object


@cache
def import_timm() -> ModuleType:
    """timm, also where torchvision's wheel was built for CUDA and torch was not.

    There torchvision's compiled operators cannot load, and its import dies on `torchvision::nms does not exist`.
    Declaring the operators is enough, since nothing here calls them; a build that loads is left alone.
    """
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        for binary in Path(folder).glob("_C*.so"):
            try:
                torch.ops.load_library(str(binary))
            except OSError:
                _declared.append(torch.library.Library("torchvision", "DEF"))
                for name in ("nms", "qnms"):
                    _declared[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    import distill.models.hybridhash  # noqa: F401 - makes itself known to timm

    return timm
