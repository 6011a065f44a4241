"""The images of a run's own data in full size: by the ids that its gallery has of them, or as its queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image

from distill.config import TrainConfig, load_yaml
from gallery.errors import InputError
from gallery.row_checks import item_id

if TYPE_CHECKING:
    from distill.context import RunContext
    from distill.data.dataset import ImageList
    from distill.infer import Indices


def run_images(folder: Path) -> Callable[[str], Image]:
    """Return a function of an id to its image, upright RGB of full size; raises `InputError` where the data are gone.

    So does the function, for an id of another source and an image that cannot be read.
    """
    config: TrainConfig = load_yaml(folder / "config.yaml", TrainConfig)
    listed = _listed(config, folder)
    places = {item_id(name): place for place, name in enumerate(listed.names)}

    def read(id: str) -> Image:
        if id not in places:
            fix = "Add it with its source: gallery/run.py add."
            raise InputError(
                f"an image of {config.data}", "no source is known, and no image of the run has this id", fix
            )
        return listed.source.read(places[id])[0]

    return read


def query_photos(context: RunContext) -> Callable[[Indices], Iterator[Image]]:
    """Return a function of places in `data.query` to these images, upright RGB of full size."""
    listed, names = _listed(context.config, context.run_dir.folder), context.data.names
    places = {name: place for place, name in enumerate(listed.names)}
    return lambda rows: (listed.source.read(places[names[i]])[0] for i in context.data.query[rows])


def _listed(config: TrainConfig, folder: Path) -> ImageList:
    from distill.data.load import list_images

    return list_images(config.data, folder.absolute().parent / "cache", config.data_root, config.seed)
