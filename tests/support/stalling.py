"""The digits on a disk that can stop answering."""

import dataclasses
import os
import time

import gin

from nest_dist.data.sources import digits


@gin.register
@dataclasses.dataclass(frozen=True)
class StallingDigits:
    """The digits; while the file STALL exists, whoever reads one waits."""

    split: str
    image_side: int = 32

    def open(self):
        return _Stalling(digits.Digits(self.split, self.image_side).open(), os.environ["STALL"])


@dataclasses.dataclass(frozen=True)
class _Stalling:
    source: object
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
