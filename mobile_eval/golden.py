"""A bundle's own test: every file over the golden pictures, held against the codes that came with them."""

from __future__ import annotations

import numpy as np

from export.artifact import FLOAT, ExportedModel
from export.bundle import Golden
from gallery.codes import unpack
from gallery.results import Thresholds
from mobile_eval.compare import NO_ENGINE
from mobile_eval.runtimes import ModelOutput, open_model

FP16_MARGIN = 0.1  # of the logits' standard deviation
OK, FAILED, NOT_RUN = "ok", "FAILED", "not run here"


def attempt(file: ExportedModel, golden: Golden) -> tuple[str, str]:
    """Runs one file over the golden pictures: how that ended, and the figures or what stopped it."""
    try:
        return judge(file.card.precision, open_model(file.path).run(golden.images), golden)
    except NO_ENGINE as error:
        return NOT_RUN, f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - engines raise whatever they like; the other rows must still be made
        return FAILED, f"{type(error).__name__}: {error}"


def judge(precision: str, found: ModelOutput, golden: Golden) -> tuple[str, str]:
    """How a file of a precision did, and the figures.

    fp32: no bit may turn unless both logits are within the gate's tolerance of zero; fp16: unless both are within
    `FP16_MARGIN`, 5 to 30 times the largest error seen.  Quantized: the gate's share of the bits may turn, and three
    standard deviations more, since so few pictures cannot tell 2 % from 3: 19 of the 512 bits of 8 pictures.  A file
    that turns just 2 % fails one such bundle in 250.
    """
    thresholds, turned = Thresholds(), unpack(found.codes) != unpack(golden.codes)
    apart = float(np.abs(found.logits - golden.logits).max())
    count, size, share = int(turned.sum()), turned.size, thresholds.quantized.max_bit_flip_rate
    said = f"{count} of {size} bits turned ({count / size:.1%}), logits up to {apart:.2g} apart"
    if precision in FLOAT:
        margin = thresholds.logit_tolerance if precision == "fp32" else FP16_MARGIN * float(golden.logits.std())
        near = np.maximum(np.abs(golden.logits), np.abs(found.logits)) <= margin
        beyond = int((turned & ~near).sum())
        said, bad = f"{said}; {beyond} turned beyond |logit| {margin:.2g}, 0 may", beyond > 0
    else:
        most = int(size * share + 3 * np.sqrt(size * share * (1 - share)))
        said, bad = f"{said}; {most} may", count > most
    return FAILED if bad or not np.isfinite(apart) else OK, said
