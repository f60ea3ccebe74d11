"""What an evaluation has gathered, made by hand."""

import numpy as np

from nest_dist.train import evaluators
from nest_dist.train.evaluators import features as feature_names


def classes(count, own=None):
    """Classes with the names a, b, c and so on; `own` are those of the data set."""
    names = tuple(chr(ord("a") + number) for number in range(count))
    return evaluators.Classes(names, names if own is None else own)


def examples(labels, ids=None, **arrays):
    """Examples of these labels."""
    numbers = np.arange(len(labels)) if ids is None else np.asarray(ids)
    return evaluators.Examples(
        np.asarray(labels), numbers, {name: np.asarray(values) for name, values in arrays.items()}
    )


def features(values, labels, level=None):
    """Examples with features, as the devices give them: float32."""
    arrays = {feature_names.key(level): np.asarray(values, np.float32)}
    return evaluators.Examples(np.asarray(labels), np.arange(len(labels)), arrays)


def concluded(measure, examples, reference, classes):
    """What a measure finds."""
    return measure.conclude(evaluators.Gathered(examples, reference, classes))
