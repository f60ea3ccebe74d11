"""The formulas of optimizers in NumPy's float64, one parameter at a time.

Each function takes the parameter, its gradients by step, the rate of each step, and the rate of
weight decay. It gives the parameter after the last step.
"""

import numpy as np


def adamw(param, grads, rates, decay, b1=0.9, b2=0.999, eps=1e-8, trust=False, coupled=0.0):
    mean = square = np.zeros_like(param)
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        grad = grad + coupled * param
        mean = b1 * mean + (1 - b1) * grad
        square = b2 * square + (1 - b2) * grad**2
        step = mean / (1 - b1**t) / (np.sqrt(square / (1 - b2**t)) + eps) + decay * param
        if trust:
            step = step * np.linalg.norm(param) / np.linalg.norm(step)
        param = param - rate * step
    return param


def sgd(param, grads, rates, decay, momentum, nesterov):
    total = np.zeros_like(param)
    for grad, rate in zip(grads, rates, strict=True):
        grad = grad + decay * param
        total = momentum * total + grad
        param = param - rate * (grad + momentum * total if nesterov else total)
    return param


def lion(param, grads, rates, decay, b1=0.9, b2=0.99):
    mean = np.zeros_like(param)
    for grad, rate in zip(grads, rates, strict=True):
        step = np.sign(b1 * mean + (1 - b1) * grad)
        mean = b2 * mean + (1 - b2) * grad
        param = param - rate * (step + decay * param)
    return param


def adafactor(param, grads, rates, decay, factored, exponent=0.8, clipping=1.0):
    """`factored` are the two axes whose means are kept, or None."""
    rows = columns = square = 0.0
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        b2 = 1 - float(t) ** -exponent
        squared = grad**2 + 1e-30
        if factored is None:
            square = b2 * square + (1 - b2) * squared
            estimate = square
        else:
            one, other = factored
            rows = b2 * rows + (1 - b2) * squared.mean(axis=other, keepdims=True)
            columns = b2 * columns + (1 - b2) * squared.mean(axis=one, keepdims=True)
            estimate = rows * columns / rows.mean(axis=one, keepdims=True)
        step = grad / np.sqrt(estimate)
        step = step / max(1.0, np.sqrt(np.mean(step**2)) / clipping)
        step = step * max(1e-3, np.sqrt(np.mean(param**2)))
        param = param - rate * (step + decay * param)
    return param


def muon(param, grads, rates, decay, inputs, momentum=0.95):
    """`inputs` leading axes of the parameter are the rows of its matrix."""
    total = np.zeros_like(param)
    for grad, rate in zip(grads, rates, strict=True):
        total = momentum * total + grad
        rows = int(np.prod(param.shape[:inputs]))
        matrix = (grad + momentum * total).reshape(rows, -1)
        # The quintic acts on the singular values alone.
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        values = values / np.linalg.norm(matrix)
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        step = (left * values) @ right * 0.2 * np.sqrt(max(matrix.shape))
        param = param - rate * (step.reshape(param.shape) + decay * param)
    return param
