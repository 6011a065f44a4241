"""Published splits, and where their data sets come from: download, place below the data root, licence."""

from dataclasses import dataclass, replace
from pathlib import Path

from gallery.errors import InputError

FLICKR = "the images remain under Flickr's terms and their photographers' licences"


@dataclass(frozen=True)
class DatasetSource:
    """folder: of the set, below the data root; layout: what must be in it; source: what to download."""

    title: str
    folder: str
    layout: str
    source: str
    licence: str

    def missing_error(self, root: Path | str, found: str = "none") -> InputError:
        """Return the error that says what to download, where to put it, and under which licence."""
        fix = f"Download {self.source}, and put it there as {self.layout}.  Licence: {self.licence}."
        return InputError(f"{self.title} in {root}/{self.folder}", found, fix)


@dataclass(frozen=True)
class PublishedSplit:
    """A split that is published as list files.

    lists:   the list files' names begin with this
    split_source: whose split it is; lists_url: where its list files are published
    path:    pattern of the lists' paths; its groups fill in the layouts, and `file` is the image's name
    layouts: where an image may lie in the data set's folder
    classes: by comma, in the order of the lists' columns; none where an image has one, with which its name begins
    sizes:   train, gallery and query as published, where known
    top_k:   R of the published mAP@R; None for the whole gallery
    database_from_set: whether the set's own lists, less the queries, are the database where there is no list of it
    train_in_gallery: whether the gallery has the training images beside those of the database list
    unseen: number of classes, the last ones, of which no image is trained on
    """

    dataset: DatasetSource
    lists: str
    split_source: str
    path: str
    layouts: tuple[str, ...]
    classes: str
    sizes: tuple[int | None, ...]
    top_k: int | None = None
    database_from_set: bool = False
    train_in_gallery: bool = False
    unseen: int = 0

    @property
    def lists_url(self) -> str:
        return HASHNET_URL if self.lists.startswith("hashnet") else ZOO_URL


CIFAR10 = DatasetSource(
    "CIFAR-10", "cifar10", "cifar-10-batches-bin/*.bin",
    "the binary version (not the pickled one) from https://www.cs.toronto.edu/~kriz/cifar.html",
    "none is given; for research, citing Krizhevsky 2009",
)  # fmt: skip
CIFAR100 = DatasetSource(
    "CIFAR-100", "cifar100", "cifar-100-binary/*.bin",
    "the binary version (not the pickled one) from https://www.cs.toronto.edu/~kriz/cifar.html", CIFAR10.licence,
)  # fmt: skip
UCMERCED = DatasetSource(
    "UC Merced Land Use", "ucmerced",
    "UCMerced_LandUse/Images/<class>/*.tif, for ucmerced_multi with LandUse_Multilabeled.txt beside UCMerced_LandUse",
    "UCMerced_LandUse.zip from http://weegee.vision.ucmerced.edu/datasets/landuse.html, and for ucmerced_multi "
    "multilabels.zip from https://bigearth.eu/datasets",
    "the images are in the public domain (USGS); cite Yang and Newsam 2010, Chaudhuri et al. 2018 for multi-labels",
)  # fmt: skip
IMAGENET = DatasetSource(
    "ImageNet (ILSVRC 2012)", "imagenet", "train/n01440764/*.JPEG, ... and val/*.JPEG or val/n01440764/*.JPEG, ...",
    "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org, after registering there",
    "ImageNet's terms of access: non-commercial research and education only",
)  # fmt: skip
COCO = DatasetSource(
    "COCO 2014", "coco", "train2014/*.jpg and val2014/*.jpg (or train2017 and val2017)",
    "train2014.zip and val2014.zip from https://cocodataset.org", f"annotations CC BY 4.0; {FLICKR}",
)  # fmt: skip
NUSWIDE = DatasetSource(
    "NUS-WIDE", "NUS-WIDE",
    "images/*.jpg, database_img.txt, database_label_onehot.txt, test_img.txt and test_label_onehot.txt",
    "NUS-WIDE.tar.gz as linked from https://github.com/TreezzZ/DSDH_PyTorch", f"non-commercial research; {FLICKR}",
)  # fmt: skip
NUSWIDE_M = DatasetSource(
    "NUS-WIDE-m", "nus_wide_m", "images/*_m.jpg",
    "nus_wide_m as linked from https://github.com/thuml/HashNet/tree/master/pytorch", NUSWIDE.licence,
)  # fmt: skip
MIRFLICKR = DatasetSource(
    "MIRFLICKR-25000", "mirflickr", "im1.jpg ... im25000.jpg, or these in a folder mirflickr",
    "mirflickr25k.zip from https://press.liacs.nl/mirflickr/mirdownload.html",
    "Creative Commons, each photographer's own choice",
)  # fmt: skip
VOC2012 = DatasetSource(
    "PASCAL VOC 2012", "voc2012", "VOCdevkit/VOC2012/JPEGImages/*.jpg",
    "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012", FLICKR,
)  # fmt: skip

ZOO_URL = "https://github.com/swuxyj/DeepHash-pytorch/tree/master/data"
HASHNET_URL = "https://github.com/thuml/HashNet/tree/master/pytorch/data"
ZOO, HASHNET = "lists of DeepHash-pytorch", "lists of HashNet (ICCV 2017)"
# Of aassxun/DSH_Analysis, "An Empirical Study on Training Paradigms for Deep Supervised Hashing".  Its text divides by
# min(relevant, 1000), as we do; its code by the relevant among the first 1000, as our second figure.
OPEN_WORLD, OPEN_WORLD_TOP_K = "of train without the last {count} of {classes} classes, as in DSH_Analysis", 1000
NUS_PATH, NUS_LAYOUT = r"images/(?P<file>\d+_\w+\.jpg)", ("images/{file}",)
CONCEPTS_21, CONCEPTS_81 = (",".join(f"concept {i:02d}" for i in range(1, n + 1)) for n in (21, 81))  # lists name none
# The order of the columns was checked: COCO's against the labels of 254 images, VOC's against its totals by class,
# MIRFLICKR's by each narrow label (_r1) being part of the wide one (but for 4 of 7,849 people).
COCO_CLASSES = (
    "airplane,apple,backpack,banana,baseball bat,baseball glove,bear,bed,bench,bicycle,bird,boat,book,bottle,bowl,"
    "broccoli,bus,cake,car,carrot,cat,cell phone,chair,clock,couch,cow,cup,dining table,dog,donut,elephant,"
    "fire hydrant,fork,frisbee,giraffe,hair drier,handbag,horse,hot dog,keyboard,kite,knife,laptop,microwave,"
    "motorcycle,mouse,orange,oven,parking meter,person,pizza,potted plant,refrigerator,remote,sandwich,scissors,sheep,"
    "sink,skateboard,skis,snowboard,spoon,sports ball,stop sign,suitcase,surfboard,teddy bear,tennis racket,tie,"
    "toaster,toilet,toothbrush,traffic light,train,truck,tv,umbrella,vase,wine glass,zebra"
)
VOC_CLASSES = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,"
    "sheep,sofa,train,tvmonitor"
)
MIRFLICKR_CLASSES = (
    "animals,baby,baby_r1,bird,bird_r1,car,car_r1,clouds,clouds_r1,dog,dog_r1,female,female_r1,flower,flower_r1,food,"
    "indoor,lake,male,male_r1,night,night_r1,people,people_r1,plant_life,portrait,portrait_r1,river,river_r1,sea,"
    "sea_r1,sky,structures,sunset,transport,tree,tree_r1,water"
)
PUBLISHED = {
    "imagenet100": PublishedSplit(
        IMAGENET, "hashnet_imagenet", f"ImageNet-100, {HASHNET}",
        r"(?:image|val_image)/(?P<file>(?:n\d{8}|ILSVRC2012_val)_\d+\.JPEG)",
        ("train/{label}/{file}", "val/{label}/{file}", "val/{file}", "image/{file}", "val_image/{file}"),
        "", (13_000, 128_503, 5_000), 1000,
    ),
    "coco": PublishedSplit(  # the list has 112,218, all queries among them
        COCO, "hashnet_coco", f"COCO 2014, {HASHNET}",
        r"(?:train|val)2014/(?P<file>COCO_(?P<part>train|val)2014_(?P<id>\d{12})\.jpg)",
        ("{part}2014/{file}", "train2017/{id}.jpg", "val2017/{id}.jpg"), COCO_CLASSES, (10_000, 107_218, 5_000), 5000,
    ),
    "nuswide_21": PublishedSplit(
        NUSWIDE, "deephash_pytorch_nuswide_21", f"NUS-WIDE, {ZOO}", NUS_PATH, NUS_LAYOUT, CONCEPTS_21,
        (10_500, 193_734, 2_100), 5000, database_from_set=True,
    ),
    "nuswide_21_m": PublishedSplit(
        NUSWIDE_M, "deephash_pytorch_nuswide_21_m", f"NUS-WIDE-m, {ZOO}", NUS_PATH, NUS_LAYOUT, CONCEPTS_21,
        (10_500, None, 2_100), 5000,
    ),
    "nuswide_81_m": PublishedSplit(
        NUSWIDE_M, "deephash_pytorch_nuswide_81_m", f"NUS-WIDE-m, {ZOO}", NUS_PATH, NUS_LAYOUT, CONCEPTS_81,
        (10_000, 168_692, 5_000), 5000,
    ),
    "mirflickr": PublishedSplit(
        MIRFLICKR, "deephash_pytorch_mirflickr", f"MIRFLICKR-25000, {ZOO}", r"(?P<file>im\d+\.jpg)",
        ("{file}", "mirflickr/{file}"), MIRFLICKR_CLASSES, (4_000, 20_000, 1_000),
    ),
    "voc2012": PublishedSplit(
        VOC2012, "deephash_pytorch_voc2012", f"VOC 2012, {ZOO}",
        r"VOCdevkit/VOC2012/JPEGImages/(?P<file>\d{4}_\d{6}\.jpg)", ("VOCdevkit/VOC2012/JPEGImages/{file}",),
        VOC_CLASSES, (4_000, 6_540, 1_000),
    ),
}  # fmt: skip
PUBLISHED["coco_csq"] = replace(  # CSQ (CVPR 2020) searches all that are not queries, those of train too
    PUBLISHED["coco"], split_source=f"COCO 2014, {HASHNET}, train added to the gallery as in CSQ",
    sizes=(10_000, 117_218, 5_000), train_in_gallery=True,
)  # fmt: skip
PUBLISHED |= {  # 130 training images a class
    f"imagenet100-zs{count}": replace(
        PUBLISHED["imagenet100"], sizes=(13_000 - 130 * count, 128_503, 5_000), top_k=OPEN_WORLD_TOP_K, unseen=count,
        split_source=f"ImageNet-100, {HASHNET}, {OPEN_WORLD.format(count=count, classes=100)}",
    ) for count in (5, 15, 25)
}  # fmt: skip
