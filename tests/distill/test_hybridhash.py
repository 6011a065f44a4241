"""HybridHash's backbone: its published size, what talks to what, and the weights of NesT-Base in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill.checkpoint import load_network, save_network
from distill.models import pretrained
from distill.models.hash_net import HashNet, build, import_timm, is_transformer, patch_size, timm_names
from gallery.errors import InputError

timm = import_timm()

from timm.models.nest import Nest  # noqa: E402 - timm comes by import_timm

from distill.models.hybridhash import HybridHash, Interaction, Spread  # noqa: E402

DIMS, HEADS = (16, 32, 64), (2, 4, 8)  # of a small one
LEVELS = ("patch_embed.", "levels.0.", "levels.1.", "levels.2.", "norm.")


def small(size: int = 64, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return HybridHash(size, DIMS, (1, 1, 2), num_heads=HEADS, num_classes=0, **options)


@pytest.fixture(autouse=True)
def no_weights_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TWINHASH_WEIGHTS", raising=False)
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="module")
def full() -> HashNet:
    return build("hybridhash", 64, 16, seed=0)


@pytest.fixture(scope="module")
def shape_of_full() -> Any:
    """At 224 px, without memory behind its tensors."""
    with torch.device("meta"):
        net = timm.create_model("hybridhash", num_classes=0)
    return net.eval()


def test_it_is_a_name_like_any_other(full: HashNet) -> None:
    assert timm_names("hybridhash") == ("hybridhash",)
    start = pretrained.backbone_info(pretrained.find_pretrained("hybridhash"))
    assert (start.patch, start.transformer, start.random) == (16, True, True)
    assert is_transformer(full.backbone)
    assert full.head.features == 512


def test_it_is_as_large_as_published(shape_of_full: Any) -> None:
    """55.57 M with 16 bits, and 14.12 GMACs of convolutions and linear layers, without attention's products."""
    count = sum(p.numel() for p in shape_of_full.parameters()) + 512 * 16 + 16
    assert count / 1e6 == pytest.approx(55.57, rel=5e-4)
    with FlopCounterMode(display=False) as counter:
        shape_of_full(torch.zeros(1, 3, 224, 224, device="meta"))
    macs = {str(kind): flops / 2e9 for kind, flops in counter.get_flop_counts()["Global"].items()}
    inside = sum(value for kind, value in macs.items() if "bmm" in kind or "attention" in kind)
    assert sum(macs.values()) - inside == pytest.approx(14.12, rel=2e-3)
    assert inside == pytest.approx(2 * 196 * 196 * (16 * 128 * 2 + 4 * 256 * 2 + 512 * 15) / 1e9, rel=1e-3)


def test_a_step_of_training_is_finite_and_reaches_every_parameter(full: HashNet) -> None:
    full.train()
    torch.manual_seed(2)
    full(torch.randn(2, 3, 64, 64)).square().sum().backward()
    gradients: dict[str, Any] = {name: p.grad for name, p in full.named_parameters()}
    full.zero_grad()
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    new = [name for name in gradients if "between" in name or "within" in name]
    assert len(new) == 18
    assert all(gradients[name].any() for name in new)
    queries_and_keys = gradients["backbone.hash_layer.between.attn.qkv.weight"][: 2 * 512]
    assert not queries_and_keys.any(), "attention over one token is a linear map"


def test_eval_is_deterministic_and_survives_the_disk(full: HashNet, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 64, 64)
    full.eval()
    with torch.no_grad():
        before = full(images)
        assert torch.equal(before, full(images))
        save_network(tmp_path / "n.safetensors", full, "hybridhash", 64, 16)
        assert torch.equal(before, load_network(tmp_path / "n.safetensors")(images))


def test_stochastic_depth_grows_linearly_to_a_half(shape_of_full: Any) -> None:
    layers = [layer for level in shape_of_full.levels for layer in level.transformer_encoder]
    rates = [getattr(layer.drop_path1, "drop_prob", 0.0) for layer in layers]
    assert rates == pytest.approx([0.5 * i / 18 for i in range(19)], abs=1e-6)
    net, images = small().train(), torch.randn(8, 3, 64, 64)
    assert not torch.equal(net(images), net(images))


@pytest.mark.parametrize(("size", "side"), [(16, 1), (32, 2), (64, 4), (128, 8), (224, 14)])
def test_blocks_follow_the_input(size: int, side: int) -> None:
    net = small(size).eval()
    assert [tuple(level.pos_embed.shape) for level in net.levels] == [
        (1, grid, side**2, dim) for grid, dim in zip((16, 4, 1), DIMS, strict=True)
    ]
    assert [net.levels[i].pool.between[1].pos_embed.shape[2] for i in (1, 2)] == [16, 4]
    with torch.no_grad():
        images = torch.randn(2, 3, size, size)
        assert net.forward_features(images).shape == (2, 64, -(-side // 2), -(-side // 2))
        assert net(images).shape == (2, 64)


@pytest.mark.parametrize("size", [0, 8, 56, 100, 240 + 8, (64, 32)])
def test_blocks_that_do_not_fit_are_an_error(size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        HybridHash(size)


def test_the_command_says_which_sizes_fit() -> None:
    with pytest.raises(InputError, match=r"hybridhash can take.*56 px.*multiple of 16"):
        build("hybridhash", 56, 16, seed=0)
    assert patch_size(small()) == 16


def test_levels_attend_inside_a_block_and_interactions_across() -> None:
    net, x = _shaken(small()), torch.randn(1, 16, 16, 16)
    other = x.clone()
    other[:, :, 0, 0] += torch.randn(16)
    with torch.no_grad():
        apart = (net.levels[0](x) != net.levels[0](other)).any(1)[0]
        assert apart[:4, :4].all()
        assert not apart[4:].any()
        assert not apart[:, 4:].any()
        step = net.levels[1].pool
        assert (step(x) != step(other)).any(1).all()


def slow_spread(module: Spread, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """`Spread` of one image `[C, H, W]`, a token, a head and a pixel at a time."""
    side, heads = module.side, 8
    dim, height = x.shape[0], x.shape[1]
    grid, size = height // side, dim // heads
    weight, own, bias = (p.detach().double().numpy() for p in
                         (module.attn.qkv.weight, module.attn.proj.weight, module.attn.proj.bias))  # fmt: skip
    place = module.pos_embed.detach().double().numpy()[0, 0]
    blocks = [(r, c) for r in range(grid) for c in range(grid)]
    tokens = [x[:, r * side : (r + 1) * side, c * side : (c + 1) * side].mean((1, 2)) for r, c in blocks]
    q, k, v = np.split(np.stack([weight @ (token + p) for token, p in zip(tokens, place, strict=True)]), 3, axis=1)
    told = np.zeros((dim, grid, grid))
    for i, (r, c) in enumerate(blocks):
        joined = np.zeros(dim)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            score = np.array([np.exp(q[i, part] @ k[j, part] / size**0.5) for j in range(len(blocks))])
            joined[head::heads] = score / score.sum() @ v[:, part]
        told[:, r, c] = own @ joined + bias
    out = np.zeros_like(x)
    for r in range(height):
        for c in range(height):
            for row, down in _near(r, side, grid):
                for column, right in _near(c, side, grid):
                    out[:, r, c] += down * right * told[:, row, column]
    return out


def _near(pixel: int, side: int, grid: int) -> list[tuple[int, float]]:
    """The two blocks a pixel lies between, by their centers, and its share of each."""
    at = min(max((pixel + 0.5) / side - 0.5, 0.0), grid - 1.0)
    low = min(int(at), max(grid - 2, 0))
    return [(low, 1 - (at - low)), (min(low + 1, grid - 1), at - low)]


def _shaken(module: nn.Module) -> Any:
    """Random everywhere, biases and zeros of the start too."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize("grid", [4, 2, 1])
def test_spread_is_what_the_paper_writes(grid: int) -> None:
    module, x = _shaken(Spread(16, grid, 3)), torch.randn(2, 16, 3 * grid, 3 * grid)
    with torch.no_grad():
        fast = module(x)
    slow = np.stack([slow_spread(module, one.double().numpy()) for one in x])
    assert fast.numpy() == pytest.approx(slow, rel=1e-4, abs=1e-5)


def test_interaction_and_hash_layer_are_what_the_paper_writes() -> None:
    """Written out with the functions of torch, every step by itself."""
    f, net = nn.functional, _shaken(small())
    step, layer = net.levels[1].pool, net.hash_layer
    assert [type(level.pool) for level in net.levels] == [nn.Identity, Interaction, Interaction]
    x, y = torch.randn(2, 16, 16, 16), torch.randn(2, 64, 4, 4)
    with torch.no_grad():
        local = f.conv2d(x, step.conv.weight, step.conv.bias, padding=1)
        both = local + step.between[1](torch.einsum("oi,bihw->bohw", step.between[0].weight[:, :, 0, 0], x))
        center, spread = both.mean(1, keepdim=True), both.var(1, keepdim=True, unbiased=False)
        normal = (both - center) / (spread + 1e-6).sqrt()
        scaled = normal * step.norm.weight[:, None, None] + step.norm.bias[:, None, None]
        assert torch.allclose(step(x), f.max_pool2d(scaled, 3, 2, 1), atol=1e-4)
        (across, down), between = layer.within, layer.between
        assert (across.kernel_size, down.kernel_size) == ((1, 3), (3, 1))
        local = f.conv2d(
            f.conv2d(y, across.weight, across.bias, padding=(0, 1)), down.weight, down.bias, padding=(1, 0)
        )
        assert torch.allclose(layer(y), f.max_pool2d(local + between(y), 3, 2, 1), atol=1e-4)


def test_the_heads_convolution_and_the_pooling_commute() -> None:
    """The paper: 1x1 convolution, then the mean over places; ours: the mean, then the head's convolution."""
    net: Any = HashNet(small(), 64, 16).eval()
    with torch.no_grad():
        maps = net.backbone.forward_features(torch.randn(3, 3, 64, 64))
        convolution, norm, _ = net.head
        assert maps.shape[2:] == (2, 2)
        theirs = norm(convolution(maps).mean((2, 3), keepdim=True)).flatten(1)
        assert torch.allclose(net.head(net.backbone.forward_head(maps)), theirs, atol=1e-6)


def test_the_tensors_of_nest_base_fit_by_name_and_shape(shape_of_full: Any) -> None:
    with torch.device("meta"):
        theirs: dict[str, Tensor] = timm.create_model("nest_base_jx").state_dict()
    ours = shape_of_full.state_dict()
    misfits = {k for k, v in theirs.items() if k not in ours or ours[k].shape != v.shape}
    dropped = {k for k in theirs if any(f"levels.2.transformer_encoder.{i}." in k for i in range(15, 20))}
    assert len(dropped) == 5 * 12
    assert misfits == dropped | {"head.weight", "head.bias"}
    new = ours.keys() - theirs.keys()
    assert all(k.startswith(("levels.1.pool.between.", "levels.2.pool.between.", "hash_layer.")) for k in new)
    assert len(new) == 18


def nest_file(folder: Path, size: int = 64) -> tuple[Path, dict[str, Tensor]]:
    """A small NesT's state, two layers deeper than the small HybridHash, under the large one's name."""
    torch.manual_seed(7)
    nest = Nest(size, embed_dims=DIMS, depths=(1, 1, 4), num_heads=HEADS, num_classes=10)
    state = {k: v.contiguous() for k, v in nest.state_dict().items()}
    save_file(state, folder / "nest_base_jx.safetensors")
    return folder / "nest_base_jx.safetensors", state


def test_weights_of_nest_are_found_and_loaded_where_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, state = nest_file(tmp_path)
    monkeypatch.setenv("TWINHASH_WEIGHTS", str(tmp_path))
    found = pretrained.find_pretrained("hybridhash")
    assert (found.name, found.path) == ("hybridhash", path)
    assert pretrained.find_pretrained("vit_b").path is None
    net = small()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    with caplog.at_level("INFO", "twinhash"):
        pretrained.load_pretrained(net, found)
    after = net.state_dict()
    lent = [k for k in after if k in state]
    assert {k.split("between")[0] for k in after if k not in state} == {
        "levels.1.pool.", "levels.2.pool.", "hash_layer.", *(k for k in after if "within" in k)
    }  # fmt: skip
    assert all(k.startswith(LEVELS) and torch.equal(after[k], state[k]) for k in lent)
    assert all(torch.equal(after[k], start[k]) for k in after if k not in state)
    assert f"{len(lent)} of the {len(state)} tensors of nest_base_jx.safetensors in TWINHASH_WEIGHTS fit" in caplog.text
    assert "hash_layer" in caplog.text


def test_a_file_of_its_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nest_file(tmp_path)
    save_file(small().state_dict(), tmp_path / "hybridhash.safetensors")
    monkeypatch.setenv("TWINHASH_WEIGHTS", str(tmp_path))
    assert pretrained.find_pretrained("hybridhash").path == tmp_path / "hybridhash.safetensors"


def test_the_hub_is_asked_for_the_weights_of_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, _: asked.append(repo))
    pretrained.find_pretrained("hybridhash")
    assert asked == ["timm/nest_base_jx.goog_in1k"]


def test_position_embeddings_of_another_size_are_resampled(tmp_path: Path) -> None:
    path, state = nest_file(tmp_path, size=128)
    net = small()
    pretrained.load_pretrained(net, pretrained.PretrainedWeights("hybridhash", path, "a test"))
    for i, grid in enumerate((4, 2, 1)):
        theirs, ours = (_as_image(p, grid) for p in (state[f"levels.{i}.pos_embed"], net.levels[i].pos_embed))
        smaller = nn.functional.interpolate(theirs, scale_factor=0.5, mode="bicubic")
        assert torch.allclose(ours, smaller, atol=1e-6)


def _as_image(embedding: Tensor, grid: int) -> Tensor:
    """`[1, blocks, tokens, C]` to `[1, C, H, W]`, a token at a time."""
    side = int(embedding.shape[2] ** 0.5)
    out = torch.zeros(1, embedding.shape[3], grid * side, grid * side)
    for block in range(grid**2):
        for token in range(side**2):
            row, column = block // grid * side + token // side, block % grid * side + token % side
            out[0, :, row, column] = embedding[0, block, token]
    return out


def test_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="fits 0%"):
        pretrained.load_pretrained(small(), pretrained.find_pretrained("hybridhash", tmp_path / "w.safetensors"))
