"""`nest-dist export`: a model as one StableHLO file that runs without nest_dist."""

import pathlib

import jax
import jax.numpy as jnp

from nest_dist.base import failures
from nest_dist.checkpointing import weight_files
from nest_dist.commands import cli, pretrained

PLATFORMS = ("cpu", "tpu")


def run(options: cli.Options) -> None:
    """Writes the model, its weights and its normalisation into one file."""
    if len(options.arguments) != 1:
        raise failures.BadInput(f"export got {len(options.arguments)} paths; give one, OUT.")
    if options.checkpoint is None:
        raise failures.BadInput(
            "--checkpoint is not given; give a file of weights, a workdir, or a repository of the "
            "Hugging Face Hub."
        )
    (out,) = options.arguments
    pretrained.require_trained(options.checkpoint)
    loaded = pretrained.load(options.checkpoint, options.step)
    artifact = exported(loaded).serialize()
    weight_files.write(pathlib.Path(out).expanduser(), lambda path: path.write_bytes(artifact))
    H, W = loaded.preprocess.sides
    C = loaded.model.num_channels
    print(f"{out}: uint8 images [B, {H}, {W}, {C}] to float32 logits, any B, on cpu and tpu")
    print(
        f"to run it: jax.export.deserialize(open({out!r}, 'rb').read()).call(images), with jax "
        "alone"
    )


def exported(loaded: pretrained.Pretrained) -> jax.export.Exported:
    """The program that takes uint8 images [B, H, W, C] to logits [B, classes], for any B."""

    def logits(images: jax.Array) -> jax.Array:
        return loaded.model.apply(loaded.variables, loaded.preprocess.pixels(images))

    H, W = loaded.preprocess.sides
    (B,) = jax.export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((B, H, W, loaded.model.num_channels), jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
