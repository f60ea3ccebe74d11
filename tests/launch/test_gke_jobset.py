"""`launch/gke_jobset.yaml` against the published schema of JobSet, and against ours."""

import json
import re

import pytest
import yaml
from kubeflow_trainer_api import models
from support import commands

from nest_dist.base import failures
from nest_dist.commands import cli

TEXT = (commands.TOP / "launch" / "gke_jobset.yaml").read_text()
USELESS = [1, failures.USAGE, 126, 127, failures.INTERRUPTED]


@pytest.fixture
def jobset():
    return yaml.safe_load(TEXT)


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


def test_hosts_and_chips_fit_the_topology(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] * chips == rows * columns


def test_its_command_is_one_of_ours(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    program, command, *flags = replicated["template"]["spec"]["template"]["spec"]["containers"][0][
        "command"
    ]
    assert (program, command) == ("nest-dist", "train")
    for flag in flags:
        assert flag.removeprefix("--").split("=")[0] in cli.COMMANDS["train"].flags
