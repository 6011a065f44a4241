"""Data parallel training: `torchrun --nproc-per-node N distill/run.py ...`; alone, every function here is a no-op.

All processes sample the same batches, each loads its own `shard`, and the features of all meet before the hash head
(`all_gather`): the head's batch norm and the loss see the whole batch, as one process would.  `data_parallel` averages
the gradients.  The processes have to see the same run folder, in which only the main process writes.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_single  # the differentiable one of this torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from distill.models.hash_net import import_timm
from gallery.console import log
from gallery.errors import InputError

Rows = TypeVar("Rows", Tensor, NDArray[Any])
LossFn = Callable[[Any], tuple[Tensor, Tensor]]  # batch -> (loss, accuracy)
PATIENCE = timedelta(hours=12)  # the main process works alone for whole stages while the others wait


@contextmanager
def init_distributed() -> Iterator[None]:
    """Join the process group of torchrun for the length of the block; only the main process logs."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus and local >= gpus:
        raise InputError("a GPU for each process", f"{gpus} GPUs", f"Give torchrun --nproc-per-node {gpus}.")
    torch.cuda.set_device(local if gpus else -1)
    torch.distributed.init_process_group("nccl" if gpus else "gloo", timeout=PATIENCE)
    level = log.level
    log.setLevel(level if is_main_process() else logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        destroy()


def destroy() -> None:
    """Destroy the process group; from here on each process is alone."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank() -> int:
    """This process's rank, 0 without torchrun."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this is the main process (the one that logs and writes)."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        torch.distributed.barrier()


def broadcast(value: Any) -> Any:
    """Return the main process's `value`, of any type that can be pickled."""
    box = [value]
    if world_size() > 1:
        torch.distributed.broadcast_object_list(box)
    return box[0]


@contextmanager
def main_process_first() -> Iterator[bool]:
    """Enter the block in the main process, then in the others, which find its results.

    Yields whether this is the main process.  If it fails, the others raise `InputError` instead of entering.
    """
    if is_main_process():
        try:
            yield True
        except Exception:  # whatever it was: the others must not wait for it
            broadcast(False)
            raise
        broadcast(True)
    elif broadcast(None):
        yield False
    else:
        raise InputError("results of the main process", "its failure", "See its message.")


def shard(rows: Rows) -> Rows:
    """This process's shard of a batch; raises `InputError` if the batch cannot be divided evenly."""
    size, left = divmod(len(rows), world_size())
    if left:
        fix = f"Choose a batch size that is a multiple of {world_size()}."
        raise InputError(f"batches that {world_size()} processes can share evenly", f"{len(rows)} images", fix)
    return rows[rank() * size : (rank() + 1) * size]


def all_gather(rows: Tensor) -> Tensor:
    """The rows of all processes, `[B, ...]` to `[B * world, ...]`, in the order of `shard`; differentiable.

    A process's rows get the sum of all processes' gradients, whose mean over processes is the gradient of one alone.
    """
    world: Any = torch.distributed.group.WORLD  # None where this process is alone
    return all_gather_single(rows, 0, world) if world else rows


class _TrainingStep(nn.Module):
    """A loss as a module, which is what DistributedDataParallel wraps, with the networks that it runs."""

    def __init__(self, networks: Mapping[str, nn.Module], loss_fn: LossFn) -> None:
        super().__init__()
        self.networks, self.loss_fn = nn.ModuleDict(networks), loss_fn

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self.loss_fn(batch)


def data_parallel(networks: Mapping[str, nn.Module], loss_fn: LossFn) -> LossFn:
    """Return `loss_fn`, whose backward pass averages the gradients of `networks` over all processes.

    Some networks of timm have unused parameters; where there are none, torch warns once that it looked for some.
    """
    if world_size() == 1:
        return loss_fn
    step = _TrainingStep(networks, loss_fn)
    return DistributedDataParallel(step, forward_sync_buffers=False, find_unused_parameters=True)


def broadcast_parameters(net: nn.Module) -> None:
    """Broadcast the main process's tensors of `net`."""
    if world_size() > 1:
        for tensor in net.state_dict().values():
            row = tensor.contiguous()  # channels_last cannot travel
            torch.distributed.broadcast(row, 0)
            tensor.copy_(row)


def convert_sync_batchnorm(net: nn.Module) -> None:
    """Convert the batch norms of `net.backbone` to synchronized ones; torch has none on CPUs."""
    backbone: Any = getattr(net, "backbone", None)
    if world_size() == 1 or backbone is None:
        return
    if torch.distributed.get_backend() == "nccl":
        net.backbone = import_timm().layers.convert_sync_batchnorm(backbone)
    elif any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        log.warning("  batch norms of the backbone are not synchronized on CPUs: each process uses its own images")
