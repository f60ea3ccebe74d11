"""The JobSets of `launch/` against the published schema of JobSet, and against ours."""

import json
import re

import pytest
import yaml
from kubeflow_trainer_api import models
from support import commands, harness, ports, readme

from nest_dist.base import failures
from nest_dist.cluster import secret
from nest_dist.commands import table

NAMES = ("gke_jobset.yaml", "gke_gpu_jobset.yaml")
USELESS = [1, failures.USAGE, 126, 127, failures.INTERRUPTED]


def load(name):
    return yaml.safe_load((commands.TOP / "launch" / name).read_text())


@pytest.fixture(params=NAMES)
def jobset(request):
    return load(request.param)


def pod_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]["template"]["spec"]


def known(value):
    """What the schema makes of it: fields that it does not have are lost, wrong ones refused."""
    return json.loads(models.JobsetV1alpha2JobSet.from_dict(value).to_json())


def lost(ours, theirs, place=""):
    """Paths of what is in `ours` and not, with the same value, in `theirs`, which has defaults."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = [(key, ours[key], theirs.get(key)) for key in ours]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [(index, *pair) for index, pair in enumerate(zip(ours, theirs, strict=True))]
    else:
        return [] if ours == theirs else [place]
    return [path for key, *pair in pairs for path in lost(*pair, f"{place}/{key}")]


def test_the_published_schema_knows_every_field(jobset):
    assert lost(jobset, known(jobset)) == []


def test_the_schema_would_refuse_what_is_wrong(jobset):
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["backofLimit"] = job.pop("backoffLimit")
    assert lost(jobset, known(jobset)) == ["/spec/replicatedJobs/0/template/spec/backofLimit"]
    job["parallelism"] = "four"
    with pytest.raises(ValueError, match="parallelism"):
        known(jobset)


def test_what_the_schema_leaves_to_the_controller_is_right(jobset):
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    described = models.JobsetV1alpha2FailurePolicyRule.model_fields
    assert rule["action"] in re.findall(r"\w+", described["action"].description)
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    # What podFailurePolicy is combined with, or the API refuses it.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    (container,) = job["template"]["spec"]["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_a_restart_follows_unless_the_exit_status_says_that_it_is_useless(jobset):
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (replicated,) = jobset["spec"]["replicatedJobs"]
    (rule,) = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == USELESS
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")


def test_hosts_and_chips_fit_the_topology():
    jobset = load("gke_jobset.yaml")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] * chips == rows * columns


def test_a_stop_is_heard_before_python_runs(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    # Else `nest-dist` is process 1, for which Linux drops signals that nobody handles yet.
    assert replicated["template"]["spec"]["template"]["spec"]["shareProcessNamespace"] is True


def test_its_command_is_one_of_ours(jobset):
    shell, script, command, *flags = pod_of(jobset)["containers"][0]["command"]
    assert (shell, command) == ("bash", "train")
    # Where launch/Dockerfile puts this folder.
    assert (commands.TOP / script.removeprefix("/nest_dist/")).is_file()
    for flag in flags:
        assert flag.removeprefix("--").split("=")[0] in table.COMMANDS["train"].flags


def test_the_secret_of_the_run_comes_from_a_secret(jobset):
    (container,) = pod_of(jobset)["containers"]
    (reference,) = [
        each["valueFrom"]["secretKeyRef"]
        for each in container["env"]
        if each["name"] == secret.VARIABLE
    ]
    assert reference == {"name": "nest-dist", "key": "secret"}
    for name in NAMES:
        text = (commands.TOP / "launch" / name).read_text()
        assert "kubectl create secret generic nest-dist --from-literal=secret=$(" in text


def test_its_image_is_built_by_the_dockerfile():
    for name, device in zip(NAMES, ("tpu", "cuda"), strict=True):
        text = (commands.TOP / "launch" / name).read_text()
        assert f"docker build --file launch/Dockerfile --build-arg DEVICE={device} " in text


def test_nodes_with_gpus_are_as_many_as_processes():
    jobset = load("gke_gpu_jobset.yaml")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job, (container,) = replicated["template"]["spec"], pod_of(jobset)["containers"]
    assert replicated["replicas"] == 1
    assert f"--num_processes={job['parallelism']}" in container["command"]
    # What JobSet calls the first pod, under the name of its service.
    name = jobset["metadata"]["name"]
    assert f"--coordinator={name}-{replicated['name']}-0-0.{name}:8482" in container["command"]
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    assert [port["containerPort"] for port in container["ports"]] == [8481, 8482]


@pytest.mark.slow
def test_the_processes_of_nodes_with_gpus_find_each_other_and_train(tmp_path):
    """As the kubelet would start them, but on the CPU and under the address of this machine."""
    *_, path = readme.GPUS[2].split()
    jobset = load(path.removeprefix("launch/"))
    (container,) = pod_of(jobset)["containers"]
    (node,) = [each["name"] for each in container["env"] if "fieldRef" in each.get("valueFrom", {})]
    words = container["command"][2:]
    own = [*commands.tiny_flags(tmp_path, *commands.ONE_LEVEL, "Run.num_epochs = 0.2")]
    words = [
        re.sub("=nest-dist.*", f"=127.0.0.1:{ports.free()}", word)
        for word in words
        if not word.startswith(("--gin_file", "--workdir"))
    ]
    started = [
        [*commands.NEST_DIST, *(word.replace(f"$({node})", str(index)) for word in words), *own]
        for index in range(2)
    ]
    environment = harness.environment(JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    with harness.Group(started, environment=environment) as group:
        assert group.wait() == [0, 0], group.said()
        assert "2 cpu devices in 2 processes" in group.said()
