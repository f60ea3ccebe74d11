"""Masked images by PyTorch around timm's NesT, for fixed weights, images and masks; run by hand.

    python tests/golden/masked_reference.py

It needs what timm_reference.py needs. It follows the published code of SimMIM (arXiv 2111.09886):
a token in place of masked patches after their embedding, a convolution of 1x1 and PixelShuffle as
decoder, and the mean L1 of masked pixels.

It writes, beside itself, masked_images.json: the mask of each image, the loss, and of the gradient
by each parameter the norm and the product with an array of `support.drawn`.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
SIDE, PATCH, UNIT = 48, 4, 8

sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
from support import without_torchvision  # noqa: E402

without_torchvision.pretend()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import timm_reference  # noqa: E402
import torch  # noqa: E402
from support import drawn  # noqa: E402
from timm.models import nest as timm_nest  # noqa: E402

import nest_dist  # noqa: E402
from nest_dist.train.objectives import masked_images  # noqa: E402


class Masked(torch.nn.Module):
    """SimMIM around a NesT of timm."""

    def __init__(self, encoder, channels, stride):
        super().__init__()
        self.encoder = encoder
        width = encoder.num_features
        first = encoder.patch_embed.proj.out_channels
        self.mask_token = torch.nn.Parameter(torch.zeros(1, first, 1, 1))
        self.decoder = torch.nn.Sequential(
            torch.nn.Conv2d(width, stride**2 * channels, kernel_size=1),
            torch.nn.PixelShuffle(stride),
        )

    def forward(self, images, mask):
        """The loss of images [B, C, H, W] whose patches [B, h, w] are masked."""
        tokens = self.encoder.patch_embed(images)
        hidden = mask[:, None].to(tokens.dtype)
        tokens = tokens * (1 - hidden) + self.mask_token * hidden
        tokens = self.encoder.levels(tokens)
        tokens = self.encoder.norm(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        painted = self.decoder(tokens)
        pixels = hidden.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        error = torch.nn.functional.l1_loss(images, painted, reduction="none")
        return (error * pixels).sum() / pixels.sum() / images.shape[1]


def main() -> None:
    encoder = timm_reference._filled(timm_nest.Nest(**{**timm_reference.REDUCED, "num_classes": 0}))
    reference = Masked(encoder, channels=3, stride=SIDE // 3)
    own = {
        "mask_token": reference.mask_token,
        "decoder/kernel": reference.decoder[0].weight,
        "decoder/bias": reference.decoder[0].bias,
    }
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(_to_torch(name, drawn_own(name))))
    images = drawn.images("masked", (2, SIDE, SIDE, 3))
    model = nest_dist.NesT(SIDE, PATCH, 12, 3, 3, (1, 1, 2), 0)
    objective = masked_images.MaskedImages(unit=UNIT)
    mask = np.asarray(objective.hidden(model, jax.random.key(0), np.arange(2)))
    loss = reference(
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(mask.copy())
    )
    loss.backward()
    gradients = {f"timm/{name}": p.grad.numpy() for name, p in encoder.named_parameters()}
    gradients |= {
        name: _from_torch(name, parameter.grad.numpy()) for name, parameter in own.items()
    }
    document = {
        "masks": ["".join(map(str, one.astype(int).reshape(-1))) for one in mask],
        "loss": loss.item(),
        "gradients": {name: summary(name, leaf) for name, leaf in gradients.items()},
    }
    (HERE / "masked_images.json").write_text(json.dumps(document, indent=0) + "\n")
    print(f"loss {loss.item()}, gradients by {len(gradients)} parameters")


def drawn_own(name):
    """Values for a parameter of the objective, in the shape of nest_dist."""
    pixels = (SIDE // 3) ** 2 * 3
    shapes = {"mask_token": (12,), "decoder/kernel": (48, pixels), "decoder/bias": (pixels,)}
    return 0.3 * drawn.array(name, shapes[name])


def summary(name, gradient):
    """Norm of a gradient, and its product with a drawn array."""
    gradient = np.asarray(gradient, np.float64)
    product = (gradient * drawn.array(f"product {name}", gradient.shape)).sum()
    return [float(np.linalg.norm(gradient)), float(product)]


def _to_torch(name, value):
    if name == "mask_token":
        return np.ascontiguousarray(value.reshape(1, -1, 1, 1))
    # PixelShuffle has the channels of a pixel outside of its position in the square.
    stride = SIDE // 3
    squares = np.moveaxis(value.reshape(*value.shape[:-1], stride, stride, 3), -1, -3)
    squares = squares.reshape(*value.shape[:-1], -1)
    return np.ascontiguousarray(squares if name.endswith("bias") else squares.T[..., None, None])


def _from_torch(name, value):
    if name == "mask_token":
        return value.reshape(-1)
    stride = SIDE // 3
    squares = value if name.endswith("bias") else value[..., 0, 0].T
    squares = squares.reshape(*squares.shape[:-1], 3, stride, stride)
    return np.moveaxis(squares, -3, -1).reshape(*squares.shape[:-3], -1)


if __name__ == "__main__":
    main()
