"""The road from a user's pictures to memory-mapped uint8 squares."""

from distill.data.dataset import Dataset as Dataset
from distill.data.dataset import Skipped as Skipped
from distill.data.source import load as load
from distill.data.source import native_size as native_size
