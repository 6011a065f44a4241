"""Networks and training states on disk."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from distill.checkpoint import load_network, load_state, save_network, save_state
from distill.models.hash_net import build
from gallery.codespace import CodeSpace, Preprocessing
from gallery.errors import CodeSpaceMismatch, CorruptFile

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


HEADERS: list[Any] = [
    {"name": "hf-hub:evil/repo"}, {"name": "hf_hub:evil/repo"}, {"name": "local-dir:/etc"}, {"name": "../x"},
    {"name": ""},
    {"name": "no_such_network"}, {"name": f"{SMALL}.no_such_tag"}, {"name": 5}, {"name": None}, {"name": [SMALL]},
    {"name": "vit_large_patch16_224"}, {"size": "32"}, {"size": 1 << 40}, {"size": 0}, {"size": -32}, {"size": 32.5},
    {"size": True}, {"bits": "16"}, {"bits": 1 << 40}, {"bits": 0}, {"bits": None}, {"more": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", HEADERS, ids=str)
def test_a_header_is_not_believed(change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name goes to timm only if it is one of timm's own: others would be fetched, or read from a folder."""

    def no_network(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    header = {"name": SMALL, "size": 32, "bits": 16, **change}
    tensors = {key: value.contiguous() for key, value in build(SMALL, 32, 16, seed=0).state_dict().items()}
    save_file(tensors, tmp_path / "n.safetensors", {"twinhash": json.dumps(header)})
    with pytest.raises(CorruptFile, match="a network saved by Twinhash"):
        load_network(tmp_path / "n.safetensors")


@pytest.mark.parametrize("text", ["[]", "null", "3", "{", "[" * 100_000, "", '{"name": 1e999}', "\ud800"])
def test_a_header_that_is_none_is_corrupt(text: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "n.safetensors", {"twinhash": text.encode("utf-8", "replace").decode()})
    with pytest.raises(CorruptFile):
        load_network(tmp_path / "n.safetensors")


def test_a_pipe_is_no_network(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "n.safetensors")
    with pytest.raises(CorruptFile, match="pipe"):
        load_network(tmp_path / "n.safetensors")


@pytest.mark.parametrize("damage", ["truncated", "one bit", "a list as header", "no step", "empty"])
def test_a_damaged_state_is_said_and_training_starts_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, net = tmp_path / "s", torch.nn.Linear(30, 20)
    save_state(path, {"net": net}, 7, "key")
    whole = path.read_bytes()
    if damage == "one bit":
        path.write_bytes(whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])
    elif damage == "truncated":
        path.write_bytes(whole[:-10])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        header = '["key"]' if damage == "a list as header" else '{"key": "key"}'
        save_file({"net/weight": net.weight.detach()}, path, {"twinhash": header})
    assert load_state(path, {"net": net}, "key") == 0
    assert "is damaged" in caplog.text


def test_a_state_that_does_not_fit_names_the_file_to_delete(tmp_path: Path) -> None:
    save_state(tmp_path / "s", {"net": torch.nn.Linear(3, 2)}, 7, "key")
    other = {"net": torch.nn.Linear(4, 2)}
    with pytest.raises(CorruptFile, match=f"Delete {tmp_path / 's'}"):
        load_state(tmp_path / "s", other, "key")
    (tmp_path / "s").unlink()
    assert load_state(tmp_path / "s", other, "key") == 0


def test_a_student_carries_its_code_space(tmp_path: Path) -> None:
    spaces = [
        CodeSpace(16, ("a", "b"), "t", digest * 64, "0" * 64, Preprocessing(32, (0.5,) * 3, (0.5,) * 3))
        for digest in "01"
    ]
    path = tmp_path / "n.safetensors"
    save_network(path, build(SMALL, 32, 16, seed=3), SMALL, 32, 16, spaces[0].id)
    load_network(path, spaces[0])
    with pytest.raises(CodeSpaceMismatch, match=spaces[0].id):
        load_network(path, spaces[1])
