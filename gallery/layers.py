"""The layers of packages, each an extra of this distribution, and the error that names the one that is missing."""

from functools import cache
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Any

from gallery.errors import MissingBackend

DISTRIBUTION, EVERYTHING = "twinhash", "all"
NAMES = {"PIL": "pillow", "faiss": "faiss-cpu", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # of packages, by module


@cache
def packages() -> dict[str, frozenset[str]]:
    """Return the packages of each extra of the installed Twinhash, and under "" those that it always has.

    Of a copy that was not installed nothing is known: then there are none.
    """
    try:
        about: Any = metadata(DISTRIBUTION)
    except PackageNotFoundError:
        return {}
    from packaging.requirements import Requirement

    listed = [Requirement(line) for line in about.get_all("Requires-Dist", ())]

    def named(extra: str) -> frozenset[str]:
        mine = [one for one in listed if (one.marker.evaluate({"extra": extra}) if one.marker else not extra)]
        included = (named(other) for one in mine if one.name == DISTRIBUTION for other in one.extras)
        return frozenset(one.name for one in mine if one.name != DISTRIBUTION).union(*included)

    return {extra: named(extra) for extra in ("", *about.get_all("Provides-Extra", ()))}


def require(extra: str) -> None:
    """Raise `MissingBackend`, which names the extra, unless its packages are installed; none is imported."""
    if missing := sorted(name for name in packages().get(extra, ()) if not _is_installed(name)):
        raise MissingBackend(f"the packages of the extra {extra}", f"no {', '.join(missing)}", _install(extra))


def missing_module(module: str, package: str = "") -> MissingBackend:
    """Build the error for a module that cannot be found: its fix is the smallest extra with its package.

    package: what to install, where it is not named as the module
    """
    root = module.partition(".")[0]
    package = package or NAMES.get(root, root.replace("_", "-"))
    known = packages()
    extras = sorted((extra for extra in known if package in known[extra]), key=lambda extra: len(known[extra]))
    fix = _install(*extras[:1] or [EVERYTHING]) if known else f"Run: pip install {package}"
    return MissingBackend(f"{package} to be installed", f"no module named {module}", fix)


def _install(extra: str) -> str:
    target = f"'.[{extra}]'" if extra else "."
    return f"Run, in Twinhash's folder: pip install -e {target}"


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
