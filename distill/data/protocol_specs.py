"""Where the protocols' data sets come from, where they lie below the data root, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gallery.errors import InputError

FLICKR = "the pictures remain under Flickr's terms and their photographers' licences"


@dataclass(frozen=True)
class DatasetSource:
    """folder: of the set, below the data root; layout: what must be in it; source: what to download."""

    title: str
    folder: str
    layout: str
    source: str
    licence: str

    def absent(self, root: Path | str, found: str = "none") -> InputError:
        """The error where there is no such set: says what to download, where to put it, and under which licence."""
        fix = f"Download {self.source}, and put it there as {self.layout}.  Licence: {self.licence}."
        return InputError(f"{self.title} in {root}/{self.folder}", found, fix)


CIFAR10 = DatasetSource(
    "CIFAR-10", "cifar10", "cifar-10-batches-bin/*.bin",
    "the binary version (not the pickled one) from https://www.cs.toronto.edu/~kriz/cifar.html",
    "none is given; for research, citing Krizhevsky 2009",
)  # fmt: skip
UCMERCED = DatasetSource(
    "UC Merced Land Use", "ucmerced",
    "UCMerced_LandUse/Images/<class>/*.tif, for ucmerced_multi with LandUse_Multilabeled.txt beside UCMerced_LandUse",
    "UCMerced_LandUse.zip from http://weegee.vision.ucmerced.edu/datasets/landuse.html, and for ucmerced_multi "
    "multilabels.zip from https://bigearth.eu/datasets",
    "the pictures are in the public domain (USGS); cite Yang and Newsam 2010, Chaudhuri et al. 2018 for multi-labels",
)  # fmt: skip
IMAGENET = DatasetSource(
    "ImageNet (ILSVRC 2012)", "imagenet", "train/n01440764/*.JPEG, ... and val/*.JPEG or val/n01440764/*.JPEG, ...",
    "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org, after registering there",
    "ImageNet's terms of access: non-commercial research and education only",
)  # fmt: skip
COCO = DatasetSource(
    "COCO 2014", "coco", "train2014/*.jpg and val2014/*.jpg (or train2017 and val2017)",
    "train2014.zip and val2014.zip from https://cocodataset.org",
    f"annotations CC BY 4.0; {FLICKR}",
)  # fmt: skip
NUSWIDE = DatasetSource(
    "NUS-WIDE", "NUS-WIDE", "images/*.jpg, database_img.txt, database_label_onehot.txt, test_img.txt and "
    "test_label_onehot.txt",
    "NUS-WIDE.tar.gz as linked from https://github.com/TreezzZ/DSDH_PyTorch",
    f"non-commercial research; {FLICKR}",
)  # fmt: skip
NUSWIDE_M = DatasetSource(
    "NUS-WIDE-m", "nus_wide_m", "images/*_m.jpg",
    "nus_wide_m as linked from https://github.com/thuml/HashNet/tree/master/pytorch",
    NUSWIDE.licence,
)  # fmt: skip
MIRFLICKR = DatasetSource(
    "MIRFLICKR-25000", "mirflickr", "im1.jpg ... im25000.jpg, or these in a folder mirflickr",
    "mirflickr25k.zip from https://press.liacs.nl/mirflickr/mirdownload.html",
    "Creative Commons, each photographer's own choice",
)  # fmt: skip
VOC2012 = DatasetSource(
    "PASCAL VOC 2012", "voc2012", "VOCdevkit/VOC2012/JPEGImages/*.jpg",
    "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    FLICKR,
)  # fmt: skip
