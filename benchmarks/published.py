"""What others report of the methods compared here, with the protocol: beside our figures, never against them.

mAP as the literature counts it: over the relevant items among the first R, ties in whatever order a sort left them,
the best epoch by the queries' own mAP.
"""

from typing import NamedTuple

ZOO, ZOO_FILE, ZOO_ISSUE = (f"DeepHash-pytorch, {where}" for where in ("README", "the method's file", "an issue"))
CSQ_CODE, ORTHO = "the README of CSQ's code", "the README of OrthoHash's code"
CIFAR, CIFAR_2 = "CIFAR-10, 5,000 train of 59,000 in the gallery", "CIFAR-10, 50,000 train = gallery"
CIFAR_APART = "CIFAR-10, 54,000 in the gallery"
IMAGENET, COCO = "ImageNet-100 @1000", "COCO @5000"


class Published(NamedTuple):
    """One figure."""

    map: float
    bits: int
    data: str
    backbone: str
    source: str


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cnnh": (Published(0.134, 48, CIFAR, "AlexNet", ZOO),),
    "dsh": (Published(0.800, 48, CIFAR, "AlexNet", ZOO), Published(0.655, 48, COCO, "AlexNet", ZOO)),
    "dpsh": (Published(0.775, 48, CIFAR_APART, "AlexNet", ZOO),
             Published(0.711, 48, COCO, "AlexNet", ZOO)),
    "hashnet": (Published(0.807, 48, CIFAR, "AlexNet", f"{ZOO_ISSUE}, its best"),
                Published(0.644, 48, IMAGENET, "AlexNet", ZOO)),
    "dch": (Published(0.810, 48, CIFAR, "AlexNet", ZOO_FILE), Published(0.586, 48, IMAGENET, "AlexNet", ZOO_FILE)),
    "dtsh": (Published(0.800, 48, CIFAR_APART, "AlexNet", ZOO),
             Published(0.760, 48, COCO, "AlexNet", ZOO)),
    "dpn": (Published(0.787, 48, CIFAR, "AlexNet", ZOO_FILE), Published(0.688, 48, IMAGENET, "AlexNet", ZOO_FILE)),
    "greedyhash": (Published(0.817, 48, CIFAR, "AlexNet", ZOO), Published(0.932, 48, CIFAR_2, "AlexNet", ZOO)),
    "adsh": (Published(0.921, 48, CIFAR, "AlexNet", f"{ZOO}, the network's codes in the gallery"),),
    "orthohash": (Published(0.824, 64, CIFAR, "AlexNet", f"{ORTHO}; bits: its default, not said there"),
                  Published(0.711, 64, IMAGENET, "AlexNet", ORTHO)),
    "csq": (Published(0.873, 64, IMAGENET, "ResNet50", CSQ_CODE), Published(0.861, 64, COCO, "ResNet50", CSQ_CODE)),
    "hybridhash": (Published(0.921, 64, IMAGENET, "NesT-B hybrid", "the log of its code, best epoch of four"),),
}  # fmt: skip


class PublishedOpenWorld(NamedTuple):
    """mAP@1000 in the four protocols of seen and unseen classes."""

    seen_seen: float
    seen_all: float
    unseen_unseen: float
    unseen_all: float
    bits: int
    backbone: str
    source: str


DSH_LOGS = "the logs of DSH_Analysis, its best of 50 evaluations by the queries"
CIFAR_ZS = {  # CIFAR-10, 8 seen and 2 unseen classes; ADSH gives the gallery codes of its labels, unseen ones too
    "orthohash": (PublishedOpenWorld(0.957, 0.937, 0.821, 0.376, 64, "ResNet50", DSH_LOGS),),
    "hashnet": (PublishedOpenWorld(0.943, 0.934, 0.808, 0.382, 64, "ResNet50", DSH_LOGS),),
    "adsh": (PublishedOpenWorld(0.950, 0.693, 0.744, 0.593, 32, "ResNet50", DSH_LOGS),
             PublishedOpenWorld(0.938, 0.617, 0.751, 0.751, 64, "ResNet50", DSH_LOGS)),
}  # fmt: skip
