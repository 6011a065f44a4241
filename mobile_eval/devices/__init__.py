"""The devices on which exported models run, one module each, and their names on the command line."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gallery.errors import InputError

if TYPE_CHECKING:
    from mobile_eval.devices.base import Device


def devices_by_name(names: Sequence[str], samples: int) -> list[Device]:
    """Return the devices of these names, each once and in order; a name can be several, separated by commas.

    samples: timed inferences of each model, on devices whose latency means something
    Raises `InputError` for an unknown name, with the known ones.
    """
    # imported here: this file is copied to phones, where there is neither torch nor pydantic
    from export.apps.run_on_mac import UNITS
    from mobile_eval.devices.android import Android
    from mobile_eval.devices.apple import Apple
    from mobile_eval.devices.arm64 import PROFILES, Arm64
    from mobile_eval.devices.browser import Browser
    from mobile_eval.devices.host import Host

    arm64 = {f"arm64-{profile}": partial(Arm64, profile) for profile in PROFILES}
    by_unit = {f"apple-{unit.lower().replace('_', '-')}": partial(Apple, unit, samples) for unit in UNITS}
    makers: dict[str, Callable[[], Device]] = {
        "host": partial(Host, samples=samples, partitions=True), **arm64,
        "browser-wasm-1t": partial(Browser, 1, samples=samples),
        "browser-wasm-2t": partial(Browser, 2, samples=samples),
        "browser-webgpu": partial(Browser, accelerator="webgpu", samples=samples),
        "android": partial(Android, samples=samples), "coreml-reference": partial(Apple, samples=samples), **by_unit,
    }  # fmt: skip
    groups = {
        "arm64": tuple(arm64),
        "browser": ("browser-wasm-1t", "browser-wasm-2t"),
        "apple": tuple(by_unit) if platform.system() == "Darwin" else ("coreml-reference",),
    }
    given = [one for name in names for one in name.split(",")]
    singles = dict.fromkeys(single for one in given for single in groups.get(one, (one,)))
    for name in singles:
        if name not in makers and (serial := name.partition("android:")[2]):
            makers[name] = partial(Android, serial, samples=samples)
    unknown = [name for name in singles if name not in makers]
    if unknown or not singles:
        known = ", ".join([*makers, *groups, "android:SERIAL"])
        raise InputError(f"devices among {known}", ", ".join(unknown) or "none", "Name some of these.")
    return [makers[name]() for name in singles]
