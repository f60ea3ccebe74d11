"""What the fake gcloud takes, the real one takes too."""

import os
import re
import shutil
import subprocess

import pytest

GCLOUD = shutil.which("gcloud")


@pytest.mark.slow
@pytest.mark.skipif(not GCLOUD, reason="install gcloud, https://cloud.google.com/sdk")
def test_the_fake_knows_no_flag_that_gcloud_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_CLOUD", str(tmp_path))
    from support import fake_gcloud

    # Nothing of this needs, or may reach, the network.
    environment = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path), "TERM": "dumb"}
    groups = {"auth": [], "services": [], "buckets": ["storage"]}
    for (group, verb), flags in fake_gcloud.FLAGS.items():
        words = [*groups.get(group, ["compute", "tpus"]), group, verb]
        done = subprocess.run(
            [GCLOUD, *words, "--help"], env=environment, capture_output=True, text=True, check=True
        )
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        # A switch has its opposite; GA's gcloud lists the wide ones by name.
        for flag in (flag for flag in flags if flag.startswith("--")):
            assert re.search(rf"{flag.removesuffix('!')}\b", text), (words, flag)
        for flag in ("--project", "--format", "--quiet", "--user-output-enabled"):
            assert flag in text, (words, flag)
