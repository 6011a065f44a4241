"""Finding and loading pretrained weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distill.models import pretrained
from distill.models.hash_net import build
from gallery.errors import CorruptFile, InputError

SMALL = "mobilenetv3_small_100"


@pytest.fixture(autouse=True)
def no_weights_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TWINHASH_WEIGHTS", raising=False)


def state_file(folder: Path, name: str = SMALL, drop: str = "?") -> Path:
    backbone = build(name, 32, 16, seed=9).backbone
    state = {k: v.contiguous() for k, v in backbone.state_dict().items() if not k.startswith(drop)}
    save_file(state, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def test_weights_come_from_the_path_then_the_folder_then_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pretrained.find_pretrained("vit_b").path is None
    assert "random" in pretrained.find_pretrained("vit_b").source
    path = state_file(tmp_path)
    assert pretrained.find_pretrained("mobilenetv3_small", path).path == path
    monkeypatch.setenv("TWINHASH_WEIGHTS", str(tmp_path))
    found = pretrained.find_pretrained("mobilenetv3_small")
    assert (found.name, found.path) == (SMALL, path)
    with pytest.raises(InputError, match="nothing at"):
        pretrained.find_pretrained("mobilenetv3_small", tmp_path / "none.safetensors")


def test_loaded_weights_are_in_the_network(tmp_path: Path) -> None:
    net = build(SMALL, 32, 16, seed=0)
    pretrained.load_pretrained(net.backbone, pretrained.find_pretrained(SMALL, state_file(tmp_path)))
    expected = build(SMALL, 32, 16, seed=9).backbone.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in net.backbone.state_dict().items())


def test_what_a_file_lacks_is_said_and_starts_at_random(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = build(SMALL, 32, 16, seed=0)
    before = net.backbone.conv_head.weight.clone()
    with caplog.at_level("WARNING", "twinhash"):
        pretrained.load_pretrained(
            net.backbone, pretrained.find_pretrained(SMALL, state_file(tmp_path, drop="conv_head"))
        )
    assert "conv_head" in caplog.text
    assert torch.equal(before, net.backbone.conv_head.weight)


def test_position_embeddings_are_resampled(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    backbone = build(name, 64, 16, seed=9).backbone
    save_file(dict(backbone.state_dict()), tmp_path / "w.safetensors")
    net = build(name, 32, 16, seed=0)
    pretrained.load_pretrained(net.backbone, pretrained.find_pretrained(name, tmp_path / "w.safetensors"))
    assert net.backbone.pos_embed.shape[1] == 5
    assert torch.allclose(net.backbone.pos_embed[:, 0], backbone.pos_embed[:, 0], atol=1e-6)


@pytest.mark.parametrize("name", ["levit_128s", "pit_ti_224", "visformer_tiny"])
def test_own_weights_load_at_another_input_size(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """timm resamples nothing of these: what depends on the size stays random, and is named."""
    save_file(build(name, 224, 16, seed=9).backbone.state_dict(), tmp_path / "w.safetensors")
    net = build(name, 128, 16, seed=0)
    with caplog.at_level("WARNING", logger="twinhash"):
        pretrained.load_pretrained(net.backbone, pretrained.find_pretrained(name, tmp_path / "w.safetensors"))
    assert "initialized at random" in caplog.text


def test_weights_of_numpy_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"\.npz"):
        pretrained.find_pretrained(SMALL, tmp_path / "w.npz")


def test_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"which fits \d+% of it"):
        pretrained.load_pretrained(
            build(SMALL, 32, 16, 0).backbone, pretrained.find_pretrained(SMALL, state_file(tmp_path, "mobilenetv2_100"))
        )


@pytest.mark.parametrize("junk", [b"", b"not weights", b"\x80\x04\x95"])
def test_junk_weights_are_an_error(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(junk)
    (tmp_path / "w.pth").write_bytes(junk)
    for path in tmp_path.iterdir():
        with pytest.raises(CorruptFile, match="readable"):
            pretrained.load_pretrained(build(SMALL, 32, 16, 0).backbone, pretrained.find_pretrained(SMALL, path))


def test_a_pickle_that_would_run_code_is_an_error(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"x": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(CorruptFile):
        pretrained.load_pretrained(
            build(SMALL, 32, 16, 0).backbone, pretrained.find_pretrained(SMALL, tmp_path / "w.pth")
        )
    assert not (tmp_path / "exploded").exists()


def test_package_weights_are_those_of_the_network(tmp_path: Path) -> None:
    """EfficientNet-lite0 from its package: without training its features must tell classes apart far above chance."""
    found = pretrained.find_pretrained("efficientnet_lite0")
    assert found.name == "tf_efficientnet_lite0"
    assert found.sha256
    net = build(found.name, 64, 16, seed=0).eval()
    pretrained.load_pretrained(net.backbone, found)
    from distill.data import DataConfig, load

    data = load("embedded", {64}, tmp_path, DataConfig(seed=0))
    pick = np.concatenate([data.query[data.labels[data.query] == c][:20] for c in range(10)])
    pixels = torch.from_numpy(data.pixels[64][pick]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        features = torch.nn.functional.normalize(net.backbone(pixels), dim=1)
    nearest = (features @ features.T).fill_diagonal_(-1).argmax(1).numpy()
    assert (data.labels[pick][nearest] == data.labels[pick]).mean() > 0.6


def test_a_package_with_other_bytes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"x")
    fake = pretrained.PretrainedWeights("tf_efficientnet_lite0", tmp_path / "w.pth", "a package", "0" * 64)
    with pytest.raises(CorruptFile, match="sha256"):
        pretrained.load_pretrained(build("tf_efficientnet_lite0", 32, 16, 0).backbone, fake)
