"""`nest-dist export`: a model as one StableHLO file that runs without nest_dist."""

import pathlib

import jax
import jax.numpy as jnp

from nest_dist.base import failures
from nest_dist.commands import cli
from nest_dist.pretrained import load, weight_files
from nest_dist.pretrained import stored as stored_weights

PLATFORMS = ("cpu", "tpu", "cuda")


def run(options: cli.Options) -> None:
    """Writes the model, its weights and its normalization into one file."""
    if len(options.arguments) != 1:
        raise failures.BadInput(f"export got {len(options.arguments)} paths; give one, OUT.")
    (out,) = options.arguments
    stored_weights.require_trained(options.checkpoint)
    loaded = load.load(options.checkpoint, options.step)
    program = exported(loaded).serialize()
    weight_files.write(pathlib.Path(out).expanduser(), lambda path: path.write_bytes(program))
    H, W = loaded.preprocess.sides
    C = loaded.model.num_channels
    print(f"{out}: uint8 images [B, {H}, {W}, {C}] to float32 logits, any B, on cpu, tpu and cuda")
    if loaded.preprocess.decoding.exif_orientation:
        print("in training pictures were turned upright by their EXIF orientation: turn yours, too")
    print(
        f"to run it: jax.export.deserialize(open({out!r}, 'rb').read()).call(images), with jax "
        "alone"
    )


def exported(loaded: load.Pretrained) -> jax.export.Exported:
    """The program that takes uint8 images [B, H, W, C] to logits [B, classes], for any B."""

    def logits(images: jax.Array) -> jax.Array:
        return loaded.model.apply(loaded.variables, loaded.preprocess.normalize(images))

    H, W = loaded.preprocess.sides
    (B,) = jax.export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((B, H, W, loaded.model.num_channels), jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
