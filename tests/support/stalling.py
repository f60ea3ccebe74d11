"""Data on a disk that can stop answering."""

import contextlib
import dataclasses
import os
import threading
import time
import typing

import gin

from nest_dist.data import batch

ONE_AT_A_TIME = threading.Lock()


@gin.register
@dataclasses.dataclass(frozen=True)
class Stalling:
    """Another source; while the file STALL, or a name beside it, exists, whoever reads waits.

    While STALL_slow exists, reading is slow: it has the number of a process, or 0 for all, and the
    seconds of an example.
    """

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
        with contextlib.suppress(FileNotFoundError), open(f"{self.file}_slow") as slow:
            process, seconds = slow.read().split()
            if int(process) in (0, os.getpid()):
                with ONE_AT_A_TIME:
                    time.sleep(float(seconds))
        return self.source[index]
