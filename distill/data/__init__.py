"""From a user's or a protocol's images to memory-mapped uint8 squares with labels and splits."""

from distill.data.dataset import Dataset as Dataset
from distill.data.load import DataConfig as DataConfig
from distill.data.load import load as load
from distill.data.load import summarize as summarize
from distill.data.manifest import save_split as save_split
