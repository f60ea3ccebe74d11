import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilation():
    """Little optimisation, here and in started commands.

    For tests that compile a program to run it once: compiling takes nearly all of their time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
