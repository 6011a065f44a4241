"""The images of a finished run's own data, by the ids that its gallery has of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL.Image import Image

from distill.config import TrainConfig, load_yaml
from gallery.errors import InputError
from gallery.row_checks import item_id


def run_images(folder: Path) -> Callable[[str], Image]:
    """Return a function of an id to its image, upright RGB of full size; raises `InputError` where the data are gone.

    So does the function, for an id of another source and an image that cannot be read.
    """
    from distill.data.load import list_images

    config: TrainConfig = load_yaml(folder / "config.yaml", TrainConfig)
    listed = list_images(config.data, folder.absolute().parent / "cache", config.data_root, config.seed)
    places = {item_id(name): place for place, name in enumerate(listed.names)}

    def read(id: str) -> Image:
        if id not in places:
            fix = "Add it with its source: gallery/run.py add."
            raise InputError(
                f"an image of {config.data}", "no source is known, and no image of the run has this id", fix
            )
        return listed.source.read(places[id])[0]

    return read
