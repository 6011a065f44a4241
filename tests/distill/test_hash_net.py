"""Networks, their names and sizes."""

from __future__ import annotations

import pytest
import torch

from distill.models.hash_net import (
    SHORT_NAMES,
    build,
    check_timm_name,
    create_meta_model,
    import_timm,
    is_transformer,
    timm_names,
)
from gallery.errors import InputError

SMALL = "mobilenetv3_small_100"


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


def test_the_names_of_all_networks_and_weights_of_timm_are_names() -> None:
    timm = import_timm()
    for name in (*timm.list_models(), *timm.list_pretrained()):
        assert check_timm_name(name) == name


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "hf_hub:x/y", "local-dir:/etc", "resnet18\n", "Resnet18", 3,
                                  "resnet18.", "resnet18.nope", "resnet18.a/../x"])  # fmt: skip
def test_what_timm_would_fetch_or_read_is_no_name(name: object) -> None:
    for use in (lambda: build(name, 32, 16, 0), lambda: create_meta_model(name)):
        with pytest.raises(InputError, match="timm knows"):
            use()


def test_a_wrong_name_gets_close_matches() -> None:
    with pytest.raises(InputError, match="mobilenetv3"):
        timm_names("mobilnetv3")


def test_transformers_are_recognised_and_convolutional_networks_are_not() -> None:
    assert is_transformer(build("vit_tiny_patch16_224", 32, 16, 0))
    assert not is_transformer(build(SMALL, 32, 16, 0))
