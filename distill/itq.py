"""Iterative quantization: codes that are learned from features alone, without labels.

Gong and Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", CVPR 2011.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gallery.codes import check_bits
from gallery.errors import InputError
from gallery.open_world import Features, normalize_rows

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ItqHash:
    """An affine hash of features of length one: `logits = (x / |x| - mean) @ projection`, `bit = logit > 0`.

    mean: float32 `[D]`; projection: float32 `[D, bits]`, with orthonormal columns
    errors: the quantization error of the rotation at the start and after each iteration, a mean over images and bits
    """

    mean: Features
    projection: Features
    errors: tuple[float, ...]

    def logits(self, features: Features) -> Features:
        """Return logits `[n, bits]` of features `[n, D]`."""
        unit, projection = torch.from_numpy(normalize_rows(features) - self.mean), torch.from_numpy(self.projection)
        found: Features = (unit @ projection).numpy()
        return found


def fit_itq(features: Features, bits: int, seed: int, iterations: int = 50) -> ItqHash:
    """Fit codes of `bits` bits to features `[n, D]`, which are made of length one first; the same seed, the same codes.

    With V the centered features in their first principal components (section 2.2), alternate (section 3.2)

        B = sign(V R),   R = argmin over rotations of |B - V R|^2 = U W^T  with  V^T B = U S W^T

    from a random rotation R; the error |B - V R|^2 never rises.  The paper's B is +-1; here V is scaled so that its
    entries have mean square 1, which changes no bit.
    Raises `InputError` for fewer images or features than bits, and for values that are not finite.
    """
    count, width = features.shape
    if min(count, width) < check_bits(bits):
        fix = "Use fewer --bits, more images, or a network of more features."
        raise InputError(f"at least {bits} images and features for {bits} bits", f"{count} of {width} features", fix)
    if not np.isfinite(features).all():
        raise InputError("features that are finite", "some that are not", "Check the network's weights.")
    unit = normalize_rows(features)
    mean = unit.mean(0, dtype=np.float64)
    components = _principal_components(unit, mean, bits)
    values = (torch.from_numpy(unit) @ torch.from_numpy(components.astype(np.float32))).numpy()
    values -= (mean @ components).astype(np.float32)
    scale = float(np.sqrt(np.square(values, dtype=np.float64).mean())) or 1.0
    rotation, errors = _rotate(values / scale, bits, seed, iterations)
    return ItqHash(mean.astype(np.float32), (components @ rotation).astype(np.float32), tuple(errors))


def _principal_components(unit: Features, mean: Floats, bits: int) -> Floats:
    """Return the first principal components `[D, bits]`, the largest entry of each positive."""
    images = torch.from_numpy(unit)
    covariance = (images.T @ images).double().numpy() / len(unit) - np.outer(mean, mean)
    leading = torch.linalg.eigh(torch.from_numpy(covariance))[1].flip(1)[:, :bits].numpy()
    largest = np.take_along_axis(leading, np.abs(leading).argmax(0)[None], axis=0)
    return np.asarray(leading * np.sign(largest))


def _rotate(values: NDArray[Any], bits: int, seed: int, iterations: int) -> tuple[Floats, list[float]]:
    """Return the rotation `[bits, bits]` of `values` `[n, bits]`, and the errors of it and of those before it."""
    start = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))[0]
    projected, rotation, errors = torch.from_numpy(values), torch.from_numpy(start), list[float]()
    for last in range(iterations + 1):
        rotated = projected @ rotation.float()
        signs = torch.where(rotated > 0, 1.0, -1.0)
        errors.append(float((signs - rotated).square().mean(dtype=torch.float64)))
        if last < iterations:
            left, _, right = torch.linalg.svd((projected.T @ signs).double())
            rotation = left @ right
    return rotation.numpy(), errors
