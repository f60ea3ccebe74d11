"""A small data set held in memory: what the sources of small files share."""

import dataclasses
import functools
import hashlib

import numpy as np

from nest_dist.data import batch


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Images [N, H, W, C] and labels [N] as a source.

    Attributes:
        images: uint8.
        labels: integers in [0, len(class_names)).
        class_names: the name of each label.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The digest of all pixels and labels."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(self.images.tobytes())
        digest.update(self.labels.astype(np.int64).tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> batch.Example:
        return {"image": self.images[index], "label": int(self.labels[index])}
