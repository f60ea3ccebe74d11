"""The secret of a run, from a file or the environment."""

import pytest

from nest_dist.base import failures
from nest_dist.cluster import secret

LONG = "0123456789abcdef"


def refused(message, path=None):
    with pytest.raises(failures.BadInput, match=message) as error:
        secret.read(None if path is None else str(path))
    assert "\n" not in str(error.value)


def test_a_file_comes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(secret.VARIABLE, raising=False)
    assert secret.read(None) == b""
    monkeypatch.setenv(secret.VARIABLE, LONG)
    assert secret.read(None) == LONG.encode()
    (tmp_path / "secret").write_text(LONG[::-1] + "\n")
    (tmp_path / "secret").chmod(0o640)
    assert secret.read(str(tmp_path / "secret")) == LONG[::-1].encode()


def test_what_is_no_secret_is_refused(monkeypatch, tmp_path):
    refused(r"secret_file .*absent cannot be read \(No such file", tmp_path / "absent")
    (tmp_path / "open").write_text(LONG)
    (tmp_path / "open").chmod(0o644)
    refused(r"open can be read by anyone; chmod o-r it", tmp_path / "open")
    (tmp_path / "long").write_text(LONG * 300)
    (tmp_path / "long").chmod(0o600)
    refused(r"long has over 4096 characters; give a file with a secret", tmp_path / "long")
    (tmp_path / "empty").touch(0o600)
    refused(r"empty has 0 characters; give 16 or more, as `openssl", tmp_path / "empty")
    (tmp_path / "bytes").write_bytes(b"\xff" * 20)
    refused(r"bytes cannot be read", tmp_path / "bytes")
    monkeypatch.setenv(secret.VARIABLE, "short")
    refused(r"the secret of NEST_DIST_SECRET has 5 characters; give 16 or more")


def test_a_proof_holds_for_its_words_and_its_secret_alone():
    proof = secret.proof(b"one", "leader", "nonce", 1, 2)
    assert secret.is_proof(proof, b"one", "leader", "nonce", 1, 2)
    for words in (("process", "nonce", 1, 2), ("leader", "other", 1, 2), ("leader", "nonce", 12)):
        assert not secret.is_proof(proof, b"one", *words)
    assert not secret.is_proof(proof, b"two", "leader", "nonce", 1, 2)
    assert not secret.is_proof("\ud800", b"one", "leader")
