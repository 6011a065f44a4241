"""The road from a user's or a protocol's pictures to memory-mapped uint8 squares."""

from distill.data.dataset import Dataset as Dataset
from distill.data.dataset import Skipped as Skipped
from distill.data.load import load as load
from distill.data.load import native_size as native_size
from distill.data.splits import save_split as save_split
