"""The labels of sources that tell them only with their pictures: read in one pass, and kept."""

import concurrent.futures
import hashlib
import logging
import pathlib

import numpy as np

from nest_dist.base import failures, files
from nest_dist.data import batch
from nest_dist.data.sources import retries

THREADS, BLOCK = 16, 1024  # examples that a thread reads
SEVERAL = -1  # classes, or none


def read_once(source: batch.Source) -> np.ndarray | None:
    """The label of each example [N], from the user's cache or by reading all of them.

    Returns:
        None where an example has several classes, or none.
    Raises:
        BadInput: if an example is corrupt.
    """
    log = logging.getLogger(__name__)
    content = repr((source.fingerprint, source.class_names)).encode(errors="surrogateescape")
    kept = files.user_cache("labels") / f"{hashlib.sha256(content).hexdigest()[:32]}.npy"
    with files.alone(kept):
        try:
            labels = np.load(kept, allow_pickle=False)
            if labels.shape != (len(source),):
                raise ValueError("labels of something else")
        except (OSError, ValueError, EOFError):
            log.warning("reading the classes of all %d examples, once", len(source))
            firsts = range(0, len(source), BLOCK)
            with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
                labels = np.concatenate([*pool.map(lambda it: _block(source, it), firsts)])
            try:
                files.write_durably(kept, lambda new: _save(new, labels))
            except OSError as error:
                log.warning("%s cannot be kept (%s)", kept, failures.cause(error))
    return labels if (labels != SEVERAL).all() else None


def _block(source: batch.Source, first: int) -> np.ndarray:
    numbers = range(first, min(first + BLOCK, len(source)))
    labels = np.full(len(numbers), SEVERAL)
    for at, number in enumerate(numbers):
        try:
            example = retries.example(source, number)
        except batch.Corrupt as reason:
            raise failures.BadInput(
                f"example {number} is corrupt ({reason}), so its class is not known; repair the "
                "data set, or set TrainingData.balanced to False."
            ) from None
        if len(example["labels"]) == 1 and not example.get("unknown"):
            labels[at] = example["labels"][0]
    return labels


def _save(path: pathlib.Path, labels: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, labels)
