"""Which files below a folder may be images, and which are there without being any."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from gallery.errors import InputError
from gallery.files import is_desktop_file
from gallery.names import counted, some
from gallery.results import Skipped

# Found beside images and clearly none: passed over in silence, like hidden files.
NO_IMAGE = re.compile(
    r".*\.(txt|md|[ct]sv|jsonl?|xml|ya?ml|html?|pdf|log|db|ini|parquet|np[yz]|mat|py|zip|gz|tar|aae|xmp|thm"
    r"|tmp|bak|part|crdownload)"
    r"|.+\.\w+(~|_original)|icon\r|.*:zone\.identifier|.*@syno\w+",
    re.I | re.S,
)
# Folders of file servers, desktops and archivers beside `gallery.files.DESKTOP_FILES`: thumbnails, trash, snapshots.
SOFTWARE = re.compile(
    r"@recycle|@recently-snapshot|[#~]snapshot|@syno\w*|@tmp|@sharebin|\.@\w+|found\.\d{3}"
    r"|lost\.dir|network trash folder|temporary items|_?thumb(nail)?s|ipod photo cache|paxheaders?"
    r"|_vti_\w+|_gsdata_|__pycache__|.*\.(photoslibrary|aplibrary|lrdata|lance)",
    re.I,
)
LISTED = "a link to a folder that is listed already"


@dataclass
class FolderContents:
    """What is below a folder, however deep, each folder once.

    paths: files that may be images; folders: names of those that were read; software: of those made by other software
    skipped: folders that were not read; others: the number of hidden files and those that are clearly no images
    """

    paths: list[Path] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    software: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    others: int = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        if not self.software:
            return ()
        what = f"{counted(len(self.software), 'folder')} of thumbnails, trash or snapshots"
        return (f"{what} passed over, with all images in them: {some(self.software)}.",)


def may_be_image(name: str) -> bool:
    """Return whether a file of this name may be an image: it is not hidden, and of no other kind."""
    return not name.startswith(".") and not NO_IMAGE.fullmatch(name)


def is_software_folder(name: str) -> bool:
    """Return whether other software made a folder of this name: of thumbnails, trash, snapshots."""
    return is_desktop_file(name) or bool(SOFTWARE.fullmatch(name))


def name_of(path: Path, root: Path) -> str:
    """Return `path` below `root`, as text that can be written."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def walk(root: Path) -> FolderContents:
    """Return the files that may be images, in every folder below `root` once; raises `InputError` if that is none."""
    contents, folders, seen = FolderContents(), [root], {os.path.realpath(root)}
    while folders:
        folder = folders.pop()
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            reason = str(error.strerror)
            if folder == root:
                raise InputError(f"a readable folder {root}", reason, "Check its path and rights.") from error
            reason = f"a folder that cannot be read: {reason}"
            contents.skipped.append(Skipped(path=name_of(folder, root), reason=reason))
            continue
        if folder != root:
            contents.folders.append(name_of(folder, root))
        for path in (folder / name for name in names):
            if not os.path.isdir(path):
                if may_be_image(path.name):
                    contents.paths.append(path)
                else:
                    contents.others += 1
            elif is_software_folder(path.name):
                contents.software.append(name_of(path, root))
            elif path.name.startswith("."):
                continue
            elif (real := os.path.realpath(path)) in seen:
                contents.skipped.append(Skipped(path=name_of(path, root), reason=LISTED))
            else:
                seen.add(real)
                folders.append(path)
    return contents
