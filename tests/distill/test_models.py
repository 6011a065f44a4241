"""Networks, their weights, and what is kept of them on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distill.checkpoint import load_network, load_state, save_network, save_state
from distill.models import pretrained
from distill.models.hash_net import SHORT_NAMES, build, is_transformer, timm_names
from gallery.errors import CorruptFile, InputError

SMALL = "mobilenetv3_small_100"


@pytest.fixture(autouse=True)
def no_weights_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TWINHASH_WEIGHTS", raising=False)


@pytest.mark.parametrize("short", SHORT_NAMES)
def test_every_short_name_is_known_to_timm(short: str) -> None:
    assert timm_names(short)


@pytest.mark.parametrize(
    ("name", "size"), [(SMALL, 48), ("vit_tiny_patch16_224", 48), ("mobilenetv2_100", 33), ("resnet18", 64)]
)
def test_logits_have_the_shape_of_the_code(name: str, size: int) -> None:
    net = build(name, size, 16, seed=0).eval()
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 16)


def test_the_seed_decides_the_start_and_the_global_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    a, b, c = (build(SMALL, 32, 16, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    differ = [torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True)]
    assert all(same)
    assert not all(differ)


@pytest.mark.parametrize("size", [50, 15])
def test_a_size_the_network_cannot_take_is_an_error_that_names_one_it_can(size: int) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        build("vit_tiny_patch16_224", size, 16, seed=0)


def test_a_wrong_name_gets_close_matches() -> None:
    with pytest.raises(InputError, match="mobilenetv3"):
        timm_names("mobilnetv3")


def test_transformers_are_made_of_products_and_convolutional_networks_are_not() -> None:
    assert is_transformer(build("vit_tiny_patch16_224", 32, 16, 0))
    assert not is_transformer(build(SMALL, 32, 16, 0))


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


def test_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not fit it \(size mismatch"):
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


def test_an_unreachable_hub_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    pretrained._answers.clear()
    start = time.monotonic()
    assert not pretrained._reachable("https://127.0.0.1:9")
    assert not pretrained._reachable("https://no-such-host.invalid")
    assert time.monotonic() - start < 4 * pretrained.HUB_TIMEOUT_S
