"""Data on a disk that can stop answering."""

import dataclasses
import os
import time
import typing

import gin


@gin.register
@dataclasses.dataclass(frozen=True)
class Stalling:
    """Another source; while the file STALL exists, whoever reads an example waits."""

    source: typing.Any

    def open(self):
        return _Stalling(self.source.open(), os.environ["STALL"])


@dataclasses.dataclass(frozen=True)
class _Stalling:
    source: typing.Any
    file: str

    @property
    def class_names(self):
        return self.source.class_names

    @property
    def fingerprint(self):
        return self.source.fingerprint

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        while os.path.exists(self.file):
            time.sleep(0.05)
        return self.source[index]
