"""JAX's private names that have no public twin: this file alone reaches them."""

import contextlib
import importlib.util
import inspect
import typing
from collections.abc import Iterator, Sequence

import jax

from nest_dist.base import failures

# As in pyproject.toml: the versions whose private names these are.
VERSIONS = "jax>=0.10,<0.13"

# "host:port" of process 0, number of processes, index of this one, indices of its local devices.
Detected = tuple[str | None, int | None, int | None, Sequence[int] | None]


def detect_processes(wait_seconds: int) -> Detected:
    """Asks the environment as `jax.distributed.initialize()` does; None for unknown values.

    Args:
        wait_seconds: how long the name of process 0's host may stay unknown.
    Raises:
        Failure: if this version of JAX has no such function.
        RuntimeError, ValueError, KeyError: from JAX, for an environment that lacks something.
    """
    with _reaching("clusters.ClusterEnv.auto_detect_unset_distributed_params"):
        from jax._src import clusters

        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
        signature = inspect.signature(detect)
        # It has no defaults, and detects each parameter that is None.
        arguments = {**dict.fromkeys(signature.parameters), "initialization_timeout": wait_seconds}
        call = signature.bind(**arguments)
    return detect(*call.args, **call.kwargs)


def coordination_client() -> typing.Any:
    """The client of the coordination service, once `jax.distributed` is initialized."""
    with _reaching("distributed.global_state.client"):
        from jax._src import distributed

        return distributed.global_state.client


def forget_absent_tpus() -> None:
    """Keeps JAX from asking libtpu for TPUs on a machine that has none, nor GPUs of NVIDIA.

    Where libtpu is installed to rehearse, it would answer with lines of errors that are none.

    Raises:
        Failure: if this version of JAX has no such functions.
    """
    if jax.config.jax_platforms or not importlib.util.find_spec("libtpu"):
        return
    with _reaching("hardware_utils.num_available_tpu_chips_and_device_id"):
        from jax._src import hardware_utils

        tpus, _ = hardware_utils.num_available_tpu_chips_and_device_id()
        if tpus == 0 and not hardware_utils.has_visible_nvidia_gpu():
            jax.config.update("jax_platforms", "cpu")


@contextlib.contextmanager
def every_process_writes_compiled() -> Iterator[None]:
    """Lets this process write compiled programs into its cache; JAX leaves that to process 0.

    Raises:
        Failure: if this version of JAX has no such functions.
    """
    with _reaching("compiler._cache_write"):
        from jax._src import compiler, distributed

        write, state = compiler._cache_write, distributed.global_state
        index = state.process_id

    def write_as_first(*entry: typing.Any, **more: typing.Any) -> None:
        state.process_id = 0
        try:
            write(*entry, **more)
        finally:
            state.process_id = index

    compiler._cache_write = write_as_first
    try:
        yield
    finally:
        compiler._cache_write = write


@contextlib.contextmanager
def _reaching(name: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        raise failures.Failure(
            f"jax is {jax.__version__}, where jax._src.{name} is not as nest_dist needs it "
            f"({failures.first_line(error)}); install '{VERSIONS}'."
        ) from error
