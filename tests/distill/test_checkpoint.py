"""Networks and training states on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill.checkpoint import load_network, load_state, save_network, save_state
from distill.models.hash_net import build
from gallery.errors import CorruptFile

SMALL = "mobilenetv3_small_100"


def test_a_network_survives_the_disk(tmp_path: Path) -> None:
    net = build(SMALL, 32, 16, seed=3).eval()
    save_network(tmp_path / "n.safetensors", net, SMALL, 32, 16)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images), load_network(tmp_path / "n.safetensors")(images))


def test_files_have_the_permissions_of_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_network(tmp_path / "net.safetensors", build(SMALL, 32, 16, seed=0), SMALL, 32, 16)
    finally:
        os.umask(before)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_network_is_an_error(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "n.safetensors"
    save_network(path, build(SMALL, 32, 16, seed=3), SMALL, 32, 16)
    path.write_bytes(path.read_bytes()[:-1000] if damage is None else damage)
    with pytest.raises(CorruptFile, match="safetensors"):
        load_network(path)


def test_a_file_of_other_tensors_is_not_a_network(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "n.safetensors")
    with pytest.raises(CorruptFile):
        load_network(tmp_path / "n.safetensors")


def test_training_state_round_trip(tmp_path: Path) -> None:
    def one() -> tuple[torch.nn.Module, torch.optim.AdamW]:
        net = torch.nn.Linear(3, 2)
        return net, torch.optim.AdamW(net.parameters(), lr=0.1)

    net, optimizer = one()
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", {"net": net, "opt": optimizer}, 7, "key")
    other, other_optimizer = one()
    assert load_state(tmp_path / "s", {"net": other, "opt": other_optimizer}, "another key") == 0
    assert load_state(tmp_path / "s", {"net": other, "opt": other_optimizer}, "key") == 7
    for model, opt in ((net, optimizer), (other, other_optimizer)):
        opt.zero_grad()
        model(torch.full((1, 3), 2.0)).sum().backward()
        opt.step()
    assert torch.equal(net.weight, other.weight)
