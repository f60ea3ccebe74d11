"""Hosts with caches of their own: each finds its compiled programs again, or compiles anew."""

import pytest
from support import commands, harness


@pytest.mark.slow
def test_each_host_keeps_what_it_compiled_until_that_is_damaged(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    hosts = [tmp_path / "first", tmp_path / "second"]

    def compiled():
        return [{path.name for path in host.rglob("jit_*-cache")} for host in hosts]

    def train(workdir):
        flags = commands.tiny_flags(
            workdir, *commands.ONE_LEVEL, "Run.num_epochs = 0.3", "Cadence.save_every_epochs = 1"
        )
        program = [*commands.NEST_DIST, "train", *flags]
        with harness.Group(
            [
                ["env", f"XDG_CACHE_HOME={host}", *program, *peer]
                for host, peer in zip(hosts, harness.peers(2), strict=True)
            ],
            environment=harness.environment(),
        ) as group:
            assert group.wait() == [0, 0], group.said()
            return group.said()

    assert "from the cache of an earlier start" not in train(tmp_path / "run")
    before = compiled()
    for programs in before:
        assert any(name.startswith("jit_step-") for name in programs), before
    assert "programs from the cache of an earlier start: " in train(tmp_path / "again")
    assert compiled() == before
    for number, file in enumerate(sorted(it for host in hosts for it in host.rglob("*-*"))):
        if file.is_file():
            content = file.read_bytes()
            file.write_bytes((content[: len(content) // 2], bytes(len(content)), b"")[number % 3])
    assert "was corrupt and is now empty" in train(tmp_path / "damaged")
