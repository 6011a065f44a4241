"""The protocols whose splits are published as list files."""

from __future__ import annotations

from dataclasses import dataclass

from distill.data.protocol_specs import COCO, IMAGENET, MIRFLICKR, NUSWIDE, NUSWIDE_M, VOC2012, DatasetSource


@dataclass(frozen=True)
class Protocol:
    """A published split.

    lists:   the list files' names begin with this
    origin:  whose split it is; lists_from: where its list files are published
    path:    pattern of the lists' paths; its groups fill in the layouts, and `file` is the picture's name
    layouts: where a picture may lie in its home
    classes: by comma, in the order of the lists' columns; none where a picture has one, with which its name begins
    sizes:   train, gallery and query as published, where known
    cut:     R of the published mAP@R; None for the whole gallery
    own:     whether the set's own lists, less the queries, are the database where there is no list of it
    """

    home: DatasetSource
    lists: str
    origin: str
    path: str
    layouts: tuple[str, ...]
    classes: str
    sizes: tuple[int | None, ...]
    cut: int | None = None
    own: bool = False

    @property
    def lists_from(self) -> str:
        return HASHNET_URL if self.lists.startswith("hashnet") else ZOO_URL


def concepts(count: int) -> str:
    """Names for the columns of lists that do not say what they mean."""
    return ",".join(f"concept {i:02d}" for i in range(1, count + 1))


ZOO_URL = "https://github.com/swuxyj/DeepHash-pytorch/tree/master/data"
HASHNET_URL = "https://github.com/thuml/HashNet/tree/master/pytorch/data"
ZOO, HASHNET = "lists of DeepHash-pytorch", "lists of HashNet (ICCV 2017)"
NUS_PATH, NUS_LAYOUT = r"images/(?P<file>\d+_\w+\.jpg)", ("images/{file}",)
# The order of the columns was checked: COCO's against the labels of 254 pictures, VOC's against its totals by class,
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
    "imagenet100": Protocol(
        IMAGENET, "hashnet_imagenet", f"ImageNet-100, {HASHNET}",
        r"(?:image|val_image)/(?P<file>(?:n\d{8}|ILSVRC2012_val)_\d+\.JPEG)",
        ("train/{label}/{file}", "val/{label}/{file}", "val/{file}", "image/{file}", "val_image/{file}"),
        "", (13_000, 128_503, 5_000), 1000,
    ),
    "coco": Protocol(  # the list has 112,218, all queries among them
        COCO, "hashnet_coco", f"COCO 2014, {HASHNET}",
        r"(?:train|val)2014/(?P<file>COCO_(?P<part>train|val)2014_(?P<id>\d{12})\.jpg)",
        ("{part}2014/{file}", "train2017/{id}.jpg", "val2017/{id}.jpg"), COCO_CLASSES, (10_000, 107_218, 5_000), 5000,
    ),
    "nuswide_21": Protocol(
        NUSWIDE, "deephash_pytorch_nuswide_21", f"NUS-WIDE, {ZOO}", NUS_PATH, NUS_LAYOUT, concepts(21),
        (10_500, 193_734, 2_100), 5000, own=True,
    ),
    "nuswide_21_m": Protocol(
        NUSWIDE_M, "deephash_pytorch_nuswide_21_m", f"NUS-WIDE-m, {ZOO}", NUS_PATH, NUS_LAYOUT, concepts(21),
        (10_500, None, 2_100), 5000,
    ),
    "nuswide_81_m": Protocol(
        NUSWIDE_M, "deephash_pytorch_nuswide_81_m", f"NUS-WIDE-m, {ZOO}", NUS_PATH, NUS_LAYOUT, concepts(81),
        (10_000, 168_692, 5_000), 5000,
    ),
    "mirflickr": Protocol(
        MIRFLICKR, "deephash_pytorch_mirflickr", f"MIRFLICKR-25000, {ZOO}", r"(?P<file>im\d+\.jpg)",
        ("{file}", "mirflickr/{file}"), MIRFLICKR_CLASSES, (4_000, 20_000, 1_000),
    ),
    "voc2012": Protocol(
        VOC2012, "deephash_pytorch_voc2012", f"VOC 2012, {ZOO}",
        r"VOCdevkit/VOC2012/JPEGImages/(?P<file>\d{4}_\d{6}\.jpg)", ("VOCdevkit/VOC2012/JPEGImages/{file}",),
        VOC_CLASSES, (4_000, 6_540, 1_000),
    ),
}  # fmt: skip
