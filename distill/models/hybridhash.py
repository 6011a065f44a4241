"""HybridHash's backbone: NesT-Base between convolutions and block tokens.  He, Wei, HybridHash, ICMR 2024 (2405.07524).

    patches of 4 px -> level 1 -> interaction -> level 2 -> interaction -> level 3 -> layer norm -> hash layer -> mean

A level cuts its map into 16, 4 or 1 blocks of the same side (14 tokens at 224 px) and attends inside a block only; what
blocks exchange goes through the interaction before the next level:

    interaction(x) = maxpool(LN(conv3x3(x) + spread(conv1x1(x))))       maxpool: 3 x 3, stride 2
    hash layer(x)  = maxpool(conv3x1(conv1x3(x)) + spread(x))
    spread(x)      = up(attention(avgpool(x) + p))      a mean a block, p learned, bilinear up, no residual

The paper ends in conv1x1 to the bits, global average pooling, tanh.  The first two commute, so the backbone ends in the
pooling and the 1x1 convolution is our `HashHead`'s, whose batch norm stands for the bias.

The blocks' number is fixed and their side follows the input: any multiple of 16 px.  Levels, norm and the interactions'
convolution and norm have timm's names, so that the weights of its NesT-Base fit (layers 16 to 20 of level 3 do not).

At 16 bits and 224 px it has 55.56 M parameters, and 14.11 GMACs in convolutions and linear layers.  The published log
says 55.57 M and 14.12, by ptflops, which leaves out the products inside attention (1.06 more), but adds biases, norms
and pooling.  The 0.01 M are a fully connected layer that the released code constructs and never uses.  Its
attention reshapes without a permute and so mixes heads and tokens; ours is as the paper draws it, hence the released
checkpoints give other codes here.

In the hash layer attention has one token, its mean: it is a linear map, and its queries and keys learn nothing.
Importing this module makes `hybridhash` a name that timm knows; `distill.models.hash_net.import_timm` does.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import timm.models.nest as nest
import torch.nn.functional as F
from timm.layers.helpers import to_2tuple
from timm.layers.norm import LayerNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, named_apply, register_model
from torch import Tensor, nn, zeros

PATCH, BLOCKS = 4, (4, 2, 1)  # side of a patch, pixels, and of each level's grid of blocks
SPREAD_HEADS = 8


class Spread(nn.Module):
    """Exchanges information between the blocks of `[B, C, H, W]`: attention between the blocks' means, spread again."""

    def __init__(self, dim: int, grid: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(zeros(1, 1, grid**2, dim))
        self.attn = nest.Attention(dim, SPREAD_HEADS)

    def forward(self, x: Tensor) -> Tensor:
        means = F.avg_pool2d(x, self.side)
        tokens = means.flatten(2).transpose(1, 2)[:, None]
        exchanged = self.attn(tokens + self.pos_embed)[:, 0].transpose(1, 2).reshape(means.shape)
        return F.interpolate(exchanged, scale_factor=self.side, mode="bilinear")


class Interaction(nest.ConvPool):
    """NesT's step to the next level, `[B, C, H, W]` to `[B, D, H/2, W/2]`, with the blocks' exchange added."""

    def __init__(self, dim: int, out: int, grid: int, side: int) -> None:
        super().__init__(dim, out, LayerNorm)
        self.between = nn.Sequential(nn.Conv2d(dim, out, 1, bias=False), Spread(out, grid, side))

    def forward(self, x: Tensor) -> Tensor:
        both = self.conv(x) + self.between(x)
        return self.pool(self.norm(both.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class HashLayer(nn.Module):
    """The last exchange, `[B, C, H, W]` to `[B, C, H/2, W/2]`."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.within = nn.Sequential(
            nn.Conv2d(dim, dim, (1, 3), padding=(0, 1)), nn.Conv2d(dim, dim, (3, 1), padding=(1, 0))
        )
        self.between, self.pool = Spread(dim, 1, side), nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.within(x) + self.between(x))
        return pooled


class HybridHash(nest.Nest):
    """Normalised images `[B, 3, img_size, img_size]` to features `[B, embed_dims[-1]]`, before timm's classifier.

    Stochastic depth grows linearly over all layers, to 0.5 (timm's default), sampled from torch's global generator,
    which the engine seeds anew for each step.  Raises `ValueError` when the blocks do not fit.
    """

    input_step = PATCH * BLOCKS[0]

    def __init__(
        self, img_size: int | tuple[int, int] = 224, embed_dims: tuple[int, ...] = (128, 256, 512),
        depths: tuple[int, ...] = (2, 2, 15), **options: Any,
    ) -> None:  # fmt: skip
        height, width = to_2tuple(img_size)
        if height != width or height % self.input_step or not height:
            raise ValueError(f"{BLOCKS[0]} x {BLOCKS[0]} blocks of whole patches want a multiple of {self.input_step}")
        super().__init__(height, patch_size=PATCH, embed_dims=embed_dims, depths=depths, **options)
        self.hash_layer = HashLayer(self.num_features, self.block_size)
        named_apply(nest._init_nest_weights, self.hash_layer)
        for i, (dim, out) in enumerate(pairwise(embed_dims)):
            step = Interaction(dim, out, BLOCKS[i], self.block_size)
            self.levels[i + 1].pool = named_apply(nest._init_nest_weights, step)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.hash_layer(super().forward_features(x))


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Position embeddings of another input size are resampled to the model's."""
    own = model.state_dict()
    grids = {k: own[k] for k in state if k in own and k.endswith("pos_embed") and state[k].shape != own[k].shape}
    return {**state, **{k: nest.resize_pos_embed(state[k], grid) for k, grid in grids.items()}}


default_cfgs = generate_default_cfgs(
    {"hybridhash": {**nest.default_cfgs["nest_base_jx"].default.to_dict(), "hf_hub_id": "timm/nest_base_jx.goog_in1k"}}
)


@register_model
def hybridhash(pretrained: bool = False, **options: Any) -> HybridHash:
    """The published network; initialized with the weights of timm's NesT-Base, where they fit."""
    net: HybridHash = build_model_with_cfg(HybridHash, "hybridhash", pretrained, **options)
    return net
