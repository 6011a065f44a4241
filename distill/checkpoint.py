"""Networks and training states on disk: safetensors, written atomically, nothing pickled."""

import errno
import json
import re
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.models.hash_net import HashNet, build, create_meta_model
from distill.system import device
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.errors import CorruptFile, InputError
from gallery.files import atomic_path, check_regular
from gallery.record import Record

FIX = "Restore it, or run the command that made it again."
SMALLEST, LARGEST, MAX_BITS = 1, 2048, 4096  # side of an input, pixels; length of a code
Part = nn.Module | torch.optim.Optimizer


class CheckpointHeader(Record):
    """The header of a network that a run saved: the arguments of `build`, and the code space of a student."""

    name: str
    size: int = Field(strict=True, ge=SMALLEST, le=LARGEST)
    bits: int = Field(strict=True, ge=8, le=MAX_BITS)
    code_space: str = ""


def save_network(path: Path, net: nn.Module, name: str, size: int, bits: int, space: str = "") -> None:
    """Write a `HashNet`'s tensors, with the arguments of `build` in the file's header.

    space: the id of the code space of a student; a teacher's is made of its file
    """
    header = CheckpointHeader(name=name, size=size, bits=bits, code_space=space)
    _save(path, dict(net.state_dict()), header.model_dump(exclude_defaults=True))


def load_network(path: Path, space: CodeSpace | None = None) -> HashNet:
    """The inverse of `save_network`, in eval mode on the device; raises `CorruptFile` when the file is damaged.

    space: that of a student's gallery; raises `CodeSpaceMismatch` for a student of another one
    """
    tensors, header = read_checkpoint(path)
    if space:
        space.check_compatible(header.get("code_space"), "the gallery", str(path))
    try:
        saved = CheckpointHeader.model_validate(header)
        with torch.random.fork_rng(devices=[]):
            parameters = sum(p.numel() for p in create_meta_model(saved.name).parameters())
        if parameters > 2 * sum(value.numel() for value in tensors.values()):  # positions depend on the size
            raise ValueError(f"too few tensors for {saved.name}")
        net = build(saved.name, saved.size, saved.bits, seed=0)
        net.load_state_dict(tensors)
    except (ValueError, RuntimeError, InputError) as error:
        raise CorruptFile("a network saved by Twinhash", f"{path}: {error}", "Restore it from its run.") from error
    return net.eval().to(device())


def save_state(path: Path, parts: Mapping[str, Part], step: int, key: str) -> None:
    """Write the state from which training resumes bit for bit after `step` steps.

    parts: networks and optimizers by name; key: identifies the training; a state with another key is not resumed
    """
    tensors = {f"{name}/{k}": v for name, part in parts.items() for k, v in _tensors(part).items()}
    _save(path, tensors, {"step": step, "key": key, "crc32": _crc32(tensors)})


def load_state(path: Path, parts: Mapping[str, Part], key: str) -> int:
    """Restores what `save_state` wrote and returns its step; 0, with nothing changed, where there is none for `key`.

    A damaged file is no state: it is said, and training starts again.
    """
    if not path.exists():
        return 0
    try:
        tensors, header = read_checkpoint(path)
        if header.get("key") != key:
            return 0
        if header.get("crc32") != _crc32(tensors) or not isinstance(header.get("step"), int):
            raise CorruptFile("the state of a training", f"other bytes in {path}", "It starts again.")
    except CorruptFile as error:
        log.warning("  %s is damaged (%s): starting this training again", path, " ".join(error.found.split()))
        return 0
    try:
        for name, part in parts.items():
            _restore(part, {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")})
    except (RuntimeError, ValueError, LookupError) as error:
        raise CorruptFile("the state of this training", f"{path}: {error}", f"Delete {path} to train again.") from error
    return int(header["step"])


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    """Return a checksum of tensors, to find damage: a GB a second, less than it takes to write them."""
    crc = 0
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        crc = zlib.crc32(flat.view(torch.uint8).numpy().data, zlib.crc32(name.encode(), crc))
    return crc


def _tensors(part: Part) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    return {f"{i}.{k}": v for i, state in part.state_dict()["state"].items() for k, v in state.items()}


def _restore(part: Part, tensors: dict[str, Tensor]) -> None:
    if isinstance(part, nn.Module):
        part.load_state_dict(tensors)
        return
    states: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in part.param_groups for p in group["params"]]
    for name, value in tensors.items():
        i, field = name.split(".", 1)
        if value.shape == (own := parameters[int(i)]).shape:  # fused optimizers go through both in the order of memory
            value = torch.empty_like(own).copy_(value)
        states.setdefault(int(i), {})[field] = value
    part.load_state_dict({"state": states, "param_groups": part.state_dict()["param_groups"]})


def _save(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    on_cpu = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with atomic_path(path) as draft:
        draft.touch()
        mode = draft.stat().st_mode  # of the user's umask, where safetensors gives 0600
        try:
            save_file(on_cpu, draft, {"twinhash": json.dumps(header)})
        except SafetensorError as error:  # its name for a full disk
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
        draft.chmod(mode)


def read_checkpoint(path: Path, fix: str = FIX) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, and the header that a run wrote, if any; raises `CorruptFile` with `fix`."""
    try:
        check_regular(path, sys.maxsize)
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("twinhash", "{}"))
            if not isinstance(header, dict):
                raise ValueError(f"a header that is a {type(header).__name__}")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CorruptFile("a readable safetensors file", f"{path}: {error}", fix) from error
