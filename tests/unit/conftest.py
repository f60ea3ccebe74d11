"""Fixtures of unit tests."""

import pytest
from support import fake_buckets


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder with the objects of gs://mine/run."""
    with fake_buckets.Buckets(tmp_path / "buckets") as buckets:
        for name, value in buckets.environment.items():
            monkeypatch.setenv(name, value)
        (buckets.folder / "mine" / "run").mkdir(parents=True)
        yield buckets.folder / "mine" / "run"
