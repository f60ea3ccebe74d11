"""The private names of JAX are there, or one line says which is not and what to install."""

import pathlib
import tomllib

import jax
import pytest
from jax._src import clusters, distributed
from support import harness

from nest_dist.base import failures
from nest_dist.cluster import jax_private

NAME = "auto_detect_unset_distributed_params"


def test_the_versions_are_those_of_the_package():
    pyproject = pathlib.Path(__file__).parents[3] / "pyproject.toml"
    dependencies = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    assert jax_private.VERSIONS in dependencies


def test_new_parameters_of_the_detection_are_left_to_jax(monkeypatch):
    def detect(initialization_timeout, *, new, num_processes):
        assert (initialization_timeout, new, num_processes) == (7, None, None)
        return "there:99", 3, 1, [0]

    monkeypatch.setattr(clusters.ClusterEnv, NAME, detect)
    assert jax_private.detect_processes(7) == ("there:99", 3, 1, [0])


def test_a_detection_without_its_limit_is_named(monkeypatch):
    monkeypatch.setattr(clusters.ClusterEnv, NAME, lambda num_processes: None)
    with pytest.raises(failures.Failure, match=f"where jax._src.clusters.ClusterEnv.{NAME} is not"):
        jax_private.detect_processes(7)


@pytest.mark.parametrize(
    ("owner", "name", "reach"),
    [
        (clusters.ClusterEnv, NAME, lambda: jax_private.detect_processes(7)),
        (distributed, "global_state", jax_private.coordination_client),
    ],
)
def test_a_private_name_that_is_gone_is_named_with_the_remedy(owner, name, reach, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "9.9.9")
    monkeypatch.delattr(owner, name)
    with pytest.raises(failures.Failure) as refused:
        reach()
    text = str(refused.value)
    assert text.startswith("jax is 9.9.9, where jax._src.")
    assert name in text
    assert text.endswith("; install 'jax>=0.10,<0.13'.")
    assert "\n" not in text


def test_libtpu_is_not_asked_for_tpus_that_are_not_here():
    """It would print errors to the file descriptor of stderr, in any program on such a machine."""
    program = (
        "import jax; from nest_dist.cluster import jax_private; jax_private.forget_absent_tpus(); "
        "print(jax.default_backend())"
    )
    environment = {**harness.environment(), "JAX_PLATFORMS": ""}
    done = harness.python("-c", program, environment=environment, succeeds=True)
    if done.stdout.strip() == "cpu":
        assert done.stderr == ""
