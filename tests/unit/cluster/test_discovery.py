"""The processes of a run as each environment names them."""

import http.server
import threading

import pytest
from jax._src.clusters import cloud_tpu_cluster

from nest_dist.base import failures
from nest_dist.cluster import discovery, jax_private

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[007-009],other",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
METADATA = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "unknown:unknown:127.0.0.1,unknown:unknown:127.0.0.2",
    "tpu-env": "ZONE: 'z'\n",
}
SECOND_SLICE = {
    "tpu-env": "MEGASCALE_COORDINATOR_ADDRESS: '127.0.0.3:8080'\n"
    "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
}


@pytest.fixture
def tpu_vm(monkeypatch):
    """JAX on a machine with TPU chips."""
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)


@pytest.fixture
def metadata(monkeypatch, tpu_vm):
    """A metadata server; its answers can be changed."""
    answers = dict(METADATA)

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path.rpartition("/")[2]].encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    yield answers
    server.shutdown()
    server.server_close()


def detected():
    return discovery.find(None, None, None, wait_seconds=1)


def test_a_process_without_peers_is_alone():
    # Neither a name nor a port: one process needs no network.
    assert detected() == discovery.Peers("", 0, 1, 0)


def test_one_process_by_flags_needs_no_address(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert discovery.find(None, 1, None, 1) == discovery.Peers()


def test_flags_come_before_the_environment(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert discovery.find("there:99", 3, 1, 1) == discovery.Peers("there", 99, 3, 1)


@pytest.mark.parametrize("host", ["::1", "fe80::1%eth0", "127.0.0.1", "a.b-c", "node_7"])
def test_an_address_is_read_and_written_alike(host):
    address = f"[{host}]:99" if ":" in host else f"{host}:99"
    peers = discovery.find(address, 2, 0, 1)
    assert (peers.host, peers.port, peers.address) == (host, 99, address)


@pytest.mark.parametrize(
    "coordinator",
    *[["http://a:99", "tcp://a:99", "::1:99", "[::1]", "a", "a:", ":99", "a:1", "a:65536", "a:9 "]],
)
def test_an_address_that_cannot_be_one_is_refused(coordinator):
    with pytest.raises(failures.BadInput, match=r"--coordinator is .*; give HOST:PORT with a port"):
        discovery.find(coordinator, 2, 0, 1)


def test_a_pod_without_a_service_account_is_refused_in_a_line(monkeypatch):
    class ConfigException(Exception):  # as of the package kubernetes
        pass

    def detect(_):
        raise ConfigException("Service token file does not exist.")

    monkeypatch.setattr(jax_private, "detect_processes", detect)
    with pytest.raises(failures.BadInput, match=r"Service token .* --num_processes=1 for one"):
        detected()


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        # The only process of a node has all its devices, one of several its own.
        ({}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"}, [1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,3", "SLURM_LOCALID": "2"}, [2]),
    ],
)
def test_slurm(monkeypatch, changes, devices):
    for name, value in {**SLURM, **changes}.items():
        monkeypatch.setenv(name, value)
    assert detected() == discovery.Peers("node007", 61447, 4, 2, devices)


def test_a_slurm_step_of_one_node_stays_on_loopback(monkeypatch):
    for name, value in {**SLURM, "SLURM_STEP_NUM_NODES": "1"}.items():
        monkeypatch.setenv(name, value)
    assert detected() == discovery.Peers("127.0.0.1", 61447, 4, 2)


def test_gke(monkeypatch, tpu_vm):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "127.0.0.1,127.0.0.2,127.0.0.3")
    monkeypatch.setenv("TPU_WORKER_ID", "2")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "true")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "")
    assert detected() == discovery.Peers("127.0.0.1", 8482, 3, 2)


def test_a_slice_of_cloud_tpu(metadata):
    assert detected() == discovery.Peers("127.0.0.1", 8482, 2, 1)


def test_several_slices_of_cloud_tpu(metadata, monkeypatch):
    metadata.update(SECOND_SLICE)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "4711")
    assert detected() == discovery.Peers("127.0.0.3", 4711, 4, 3)


def test_an_environment_that_lacks_something_is_refused(metadata):
    metadata["worker-network-endpoints"] = "a:b"
    with pytest.raises(failures.BadInput, match=r"does not say where .* give --coordinator"):
        detected()
