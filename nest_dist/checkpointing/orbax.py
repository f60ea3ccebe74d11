"""Orbax: writes and reads the arrays of a checkpoint."""

import contextlib
import re
from collections.abc import Iterator

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from nest_dist.base import failures, files, tree_paths
from nest_dist.checkpointing import catalog

State = tree_paths.Tree

# The writer of a file, as in ocdbt.process_3/d/... and array_metadatas/process_3.
_WRITER = re.compile(r"(?:^|[/.])process_(\d+)")


def save(folder: epath.Path, state: State) -> ocp.AsyncResponse[None]:
    """Starts writing a state, on all processes together."""
    with _context(alone=False):
        return ocp.save_checkpointables_async(folder, {catalog.STATE: state})


def sync(folder: epath.Path) -> None:
    """Brings to the disk what this process wrote, on the primary one also what is nobody's."""
    for path in files.walk(folder):
        writer = _WRITER.search(str(path.relative_to(folder)))
        if int(writer[1] if writer else 0) == jax.process_index():
            files.sync(path)
    files.sync(folder.parent)


def stored(folder: epath.Path) -> State:
    """Shapes and types of the arrays in a folder."""
    with _explained(folder), _context(alone=True):
        if (shapes := ocp.checkpointables_metadata(folder).metadata[catalog.STATE]) is None:
            raise ValueError("the names of its arrays cannot be read")
        return shapes


def load(folder: epath.Path, like: State) -> State:
    """A state as this process alone reads it: it waits for no other one.

    Raises:
        BadInput: if this user may not read it.
        Unavailable: if the storage does not answer.
        Corrupt: if its content has changed.
    """
    with _explained(folder), _context(alone=True):
        return ocp.load_checkpointables(folder, {catalog.STATE: like})[catalog.STATE]


@contextlib.contextmanager
def _explained(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The storage says what Orbax does not: whether the files can be read at all.
        for path in files.patiently(folder, lambda: list(files.walk(folder))) or []:
            files.patiently(path, path.read_bytes)
        # Orbax reports a missing handler for every fault; `__cause__` is the real one.
        cause = failures.first_line(error.__cause__ or error)
        raise catalog.Corrupt(folder.name, cause) from error


def _context(alone: bool) -> ocp.Context:
    """Settings of Orbax; `alone` it waits for no other process."""
    context = ocp.Context()
    context.file.path_class = catalog.Path
    if alone:
        own = jax.process_index()
        context.multiprocessing.primary_host = own
        context.multiprocessing.active_processes = {own}
        context.multiprocessing.barrier_sync_key_prefix = f"process_{own}"
    return context
