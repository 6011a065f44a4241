"""A bundle's self-test: every model on the golden inputs, compared with the codes that came with them."""

import numpy as np

from export.artifact import FLOAT, ExportedModel, first_line
from export.bundle import Golden
from gallery.codes import pack, unpack
from gallery.results import Thresholds
from mobile_eval.compare import NO_ENGINE
from mobile_eval.devices.base import Device, DeviceOutput
from mobile_eval.runtimes import ModelOutput

FP16_MARGIN = 0.1  # of the logits' standard deviation
OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"


def check_golden(device: Device, model: ExportedModel, golden: Golden) -> tuple[str, str]:
    """Run one model on the golden inputs that the device has: the status, and the figures or the error."""
    try:
        return compare_golden(model.precision, device.run(model), golden)
    except Exception as error:  # noqa: BLE001 - engines raise whatever they like; the other rows must still be made
        return SKIPPED if isinstance(error, NO_ENGINE) else FAILED, first_line(error)


def compare_golden(precision: str, output: ModelOutput | DeviceOutput, golden: Golden) -> tuple[str, str]:
    """Compare a model's output with the golden codes: the status, and the figures.

    The codes must be the signs of the model's own logits, whatever its precision.
    fp32: no bit flips, unless both logits are within the gate's tolerance of zero; fp16: unless both are within
    `FP16_MARGIN`, 5 to 30 times the largest error seen.  Quantized: the gate's share of bit flips, and three standard
    deviations more, since so few images cannot tell 2 % from 3: 19 of the 512 bits of 8 images.  A model with exactly
    2 % of bit flips fails one such bundle in 250.
    """
    if output.codes is None or output.logits is None:
        return SKIPPED, "the device gives no codes"
    if wrong := int((unpack(output.codes) != unpack(pack(output.logits))).sum()):
        return FAILED, f"{wrong} bits of its codes are not the signs of its own logits"
    thresholds, flipped = Thresholds(), unpack(output.codes) != unpack(golden.codes)
    error = float(np.abs(output.logits - golden.logits).max())
    count, size, share = int(flipped.sum()), flipped.size, thresholds.quantized.max_bit_flip_rate
    found = f"{count} bit flips in {size} bits ({count / size:.1%}), logits differ by up to {error:.2g}"
    if precision in FLOAT:
        margin = thresholds.logit_tolerance if precision == "fp32" else FP16_MARGIN * float(golden.logits.std())
        near = np.maximum(np.abs(golden.logits), np.abs(output.logits)) <= margin
        beyond = int((flipped & ~near).sum())
        found, failed = f"{found}; {beyond} beyond |logit| {margin:.2g}, 0 allowed", beyond > 0
    else:
        most = allowed_flips(size, share)
        found, failed = f"{found}; {most} allowed", count > most
    return FAILED if failed or not np.isfinite(error) else OK, found


def allowed_flips(size: int, share: float) -> int:
    """Return how many of `size` bits may flip where `share` of all may: three standard deviations more."""
    return int(size * share + 3 * np.sqrt(size * share * (1 - share)))


def golden_thresholds(size: int, given: Thresholds) -> Thresholds:
    """Replace default bit flip rates, for golden inputs of `size` bits: they pass what `compare_golden` does."""
    defaults, changes = Thresholds(), {}
    for name in ("float", "quantized"):
        rate = getattr(defaults, name).max_bit_flip_rate
        if getattr(given, name).max_bit_flip_rate == rate:
            update = {"max_bit_flip_rate": allowed_flips(size, rate) / size}
            changes[name] = getattr(given, name).model_copy(update=update)
    return given.model_copy(update=changes)
