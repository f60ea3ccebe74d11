"""Whether the parts of a run fit together: batch, mesh, model and data."""

from nest_dist.base import checks, failures
from nest_dist.commands import run as runs
from nest_dist.data import batch
from nest_dist.parallel import rules


def require_fitting_data(run: runs.Run, training: batch.Source, evaluation: batch.Source) -> None:
    """Checks that the splits, training and evaluation, are what the model takes.

    Raises:
        BadInput: naming what differs.
    """
    for source in (training, evaluation):
        if (classes := len(source.class_names)) != run.model.num_classes:
            raise failures.BadInput(
                f"the data has {classes} classes, NesT.num_classes is {run.model.num_classes}; "
                f"set it to {classes}."
            )
    _require_fitting_images(run, training, evaluation)


def _require_fitting_images(
    run: runs.Run, training: batch.Source, evaluation: batch.Source
) -> None:
    """Looks at one example of each split on the host, before anything is compiled."""
    wanted = (*run.model.geometry().image_sides, run.model.num_channels)
    shapes = {
        "training": run.training_data.image_shape(training),
        "evaluation": run.evaluation_data.image_shape(evaluation),
    }
    for name, found in shapes.items():
        if found != wanted:
            raise failures.BadInput(
                f"{name} images come out as {list(found)}, NesT takes {list(wanted)} (height, "
                "width, channels); change the transforms, NesT.image_size or NesT.num_channels."
            )
    channels = len(run.pixels.mean)
    if channels not in (1, run.model.num_channels):
        raise failures.BadInput(
            f"Pixels.mean has {channels} numbers, the images have {run.model.num_channels} "
            "channels; give one for each."
        )


def batch_unit(run: runs.Run, layout: rules.Layout) -> int:
    """The smallest global batch that mesh, microbatches and mixing allow."""
    return layout.shards("batch") * run.microbatches * together(run)


def require_fitting_mesh(run: runs.Run, layout: rules.Layout) -> None:
    """Checks that batch and model can be cut as the mesh wants it.

    Raises:
        BadInput: naming the number that does not divide.
    """
    model, neighbours = run.model, together(run)
    shards, unit = layout.shards("batch"), batch_unit(run, layout)
    if run.global_batch % unit:
        factors = [f"the mesh's {shards} batch shards"]
        factors += [f"{run.microbatches} microbatches"] * (run.microbatches > 1)
        factors += ["2 for the pairs of Run.mixing"] * (neighbours > 1)
        checks.divides(
            "Run.global_batch",
            run.global_batch,
            unit,
            " x ".join(factors),
            "set it to one of them, or change MeshShape",
        )
    block_rows, _ = model.geometry().grids[0]
    checks.divisor_of(
        "MeshShape.rows",
        layout.shards("rows"),
        block_rows,
        "the rows of blocks of the first level",
        "change NesT.image_size or NesT.block_side",
    )
    checks.divisor_of(
        "MeshShape.tensor", layout.shards("heads"), model.heads, "NesT.heads", "change NesT.heads"
    )


def together(run: runs.Run) -> int:
    """Neighbours in a batch that a microbatch must not part."""
    return 1 if run.mixing is None else 2
