"""Data on a disk that can stop answering."""

import dataclasses
import os
import time
import typing

import gin

from nest_dist.data import batch


@gin.register
@dataclasses.dataclass(frozen=True)
class Stalling:
    """Another source; while the file STALL, or a name beside it, exists, whoever reads waits."""

    source: typing.Any
    name: str = ""

    def open(self):
        return _Stalling(self.source.open(), os.environ["STALL"] + self.name)


@dataclasses.dataclass(frozen=True)
class _Stalling(batch.Source):
    source: typing.Any
    file: str

    @property
    def class_names(self):
        return self.source.class_names

    @property
    def image_spec(self):
        return self.source.image_spec

    @property
    def fingerprint(self):
        return self.source.fingerprint

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        while os.path.exists(self.file):
            time.sleep(0.05)
        return self.source[index]
