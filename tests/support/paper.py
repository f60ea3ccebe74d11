"""NesT in plain numpy, written from the paper on the official parameter tree: a second opinion."""

import math

import numpy as np


def forward(tree, images, depths, gelu):
    """Logits [B, classes] in float64.

    Args:
        tree: {"PatchEmbedding_0/Conv_0/kernel": array, ...} as in the official code.
        images: [B, H, W, C], square.
        depths: layers of each level.
        gelu: "tanh" or "exact".
    """
    tree = {name: np.asarray(leaf, np.float64) for name, leaf in tree.items()}
    kernel, bias = (tree[f"PatchEmbedding_0/Conv_0/{leaf}"] for leaf in ("kernel", "bias"))
    patch = kernel.shape[0]
    side = images.shape[1] // patch
    plane = np.empty((len(images), side, side, kernel.shape[-1]))
    for row in range(side):
        for column in range(side):
            pixels = images[:, row * patch :, column * patch :][:, :patch, :patch]
            plane[:, row, column] = np.einsum("bhwc,hwcd->bd", pixels, kernel) + bias

    layer = 0
    for level, depth in enumerate(depths):
        places = tree[f"PositionEmbedding_{level}/pos_embedding"][0]  # [T, N, C]
        block_side = math.isqrt(places.shape[1])
        grid = plane.shape[1] // block_side
        result = np.empty_like(plane)
        for block in range(grid * grid):
            top, left = (block // grid) * block_side, (block % grid) * block_side
            window = np.s_[:, top : top + block_side, left : left + block_side]
            tokens = plane[window].reshape(len(images), -1, plane.shape[-1]) + places[block]
            for index in range(layer, layer + depth):
                tokens = _layer(_below(tree, f"EncoderNDBlock_{index}"), tokens, gelu)
            result[window] = tokens.reshape(plane[window].shape)
        plane, layer = result, layer + depth
        if level < len(depths) - 1:
            plane = _aggregate(_below(tree, f"ConvPool_{level}"), plane)

    features = _norm(_below(tree, "LayerNorm_0"), plane).mean(axis=(1, 2))
    return features @ tree["Dense_0/kernel"] + tree["Dense_0/bias"]


def _below(tree, name):
    return {k.removeprefix(name + "/"): v for k, v in tree.items() if k.startswith(name + "/")}


def _norm(tree, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-6) * tree["scale"] + tree["bias"]


def _gelu(x, kind):
    if kind == "tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _layer(tree, tokens, gelu):
    """One encoder layer on the tokens [B, N, C] of one block."""
    attention = _multi_query if "MultiQueryAttention_0/bias" in tree else _multi_head
    tokens = tokens + attention(tree, _norm(_below(tree, "LayerNorm_0"), tokens))
    mlp = _below(tree, "MlpBlock_0")
    hidden = _norm(_below(tree, "LayerNorm_1"), tokens) @ mlp["Dense_0/kernel"]
    hidden = _gelu(hidden + mlp["Dense_0/bias"], gelu)
    return tokens + hidden @ mlp["Dense_1/kernel"] + mlp["Dense_1/bias"]


def _multi_head(tree, x):
    tree = _below(tree, "MultiHeadAttention_0")
    heads = []
    for head in range(tree["proj_kernel"].shape[0]):
        query = x @ tree["DenseGeneral_0/kernel"][:, head] + tree["DenseGeneral_0/bias"][head]
        both = x @ tree["DenseGeneral_1/kernel"][:, head] + tree["DenseGeneral_1/bias"][head]
        size = query.shape[-1]
        heads.append(_head(query, both[..., :size], both[..., size:]) @ tree["proj_kernel"][head])
    return sum(heads) + tree["bias"]


def _multi_query(tree, x):
    tree = _below(tree, "MultiQueryAttention_0")
    both = x @ tree["Dense_0/kernel"] + tree["Dense_0/bias"]
    heads = []
    for head in range(tree["proj_kernel"].shape[0]):
        query = x @ tree["DenseGeneral_0/kernel"][:, head] + tree["DenseGeneral_0/bias"][head]
        size = query.shape[-1]
        heads.append(_head(query, both[..., :size], both[..., size:]) @ tree["proj_kernel"][head])
    return sum(heads) + tree["bias"]


def _head(query, key, value):
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


def _aggregate(tree, plane):
    """3x3 convolution, LayerNorm, 3x3 max-pool of stride 2 whose padding lies at the end."""
    B, side, _, _ = plane.shape
    kernel = tree["Conv_0/kernel"]
    padded = np.pad(plane, ((0, 0), (1, 1), (1, 1), (0, 0)))
    convolved = np.zeros((B, side, side, kernel.shape[-1]))
    for row in range(3):
        for column in range(3):
            window = padded[:, row : row + side, column : column + side]
            convolved += window @ kernel[row, column]
    normed = _norm(_below(tree, "LayerNorm_0"), convolved + tree["Conv_0/bias"])
    pooled = np.empty((B, side // 2, side // 2, kernel.shape[-1]))
    for row in range(side // 2):
        for column in range(side // 2):
            window = normed[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            pooled[:, row, column] = window.max(axis=(1, 2))
    return pooled
