"""`nest-dist` with bad data: batches whose loss is NaN whenever they are met, bad evaluations.

    BAD_BATCHES=4,7 BAD_EVALUATIONS=1 python -m support.poisoned train ...

Batches have their numbers in the data's sequence, evaluations in the process, both from 0. All
labels of a bad batch are one class, which no other batch has.
"""

import itertools
import math
import os

import jax.numpy as jnp
import numpy as np

from nest_dist.commands import cli
from nest_dist.data import steps
from nest_dist.train import evaluation
from nest_dist.train.objectives import classification

CLASS = 3


def numbers(name):
    return {int(number) for number in os.environ.get(name, "").split(",") if number}


def main():
    batches, evaluations = numbers("BAD_BATCHES"), numbers("BAD_EVALUATIONS")
    item, cross_entropy = steps.Steps.__getitem__, classification.cross_entropy
    evaluate, counted = evaluation.evaluate, itertools.count()

    def marked(self, step):
        batch = item(self, step)
        if step in batches and "weight" not in batch:
            batch["label"] = np.full_like(batch["label"], CLASS)
        return batch

    def poisoned(logits, targets):
        bad = jnp.all(jnp.argmax(targets, -1) == CLASS)
        return cross_entropy(logits, targets) + jnp.where(bad, jnp.nan, 0.0)

    def evaluated(*arguments):
        metrics = evaluate(*arguments)
        return {**metrics, "eval/loss": math.nan} if next(counted) in evaluations else metrics

    steps.Steps.__getitem__, classification.cross_entropy = marked, poisoned
    evaluation.evaluate = evaluated
    cli.main()


if __name__ == "__main__":
    main()
