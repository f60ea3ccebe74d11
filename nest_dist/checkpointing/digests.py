"""Content digests of a folder's files: what makes a checkpoint whole, and tells if it still is."""

import contextlib
import hashlib
import io
import os

from etils import epath

# In the form of `sha256sum`, which also checks it: `cd FOLDER && sha256sum --check SHA256SUMS`.
MANIFEST = "SHA256SUMS"


def write(folder: epath.Path) -> None:
    """Writes the manifest of a folder: at once or not at all."""
    lines = [f"{_digest(folder / name)}  {name}\n" for name in _files(folder)]
    replace_text(folder / MANIFEST, "".join(lines))


def problem(folder: epath.Path) -> str | None:
    """What is wrong with the content of a folder, naming the file; None if nothing is."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return f"{MANIFEST} is missing: it was never finished"
    expected = {}
    for line in manifest.read_bytes().decode("utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        expected[name] = digest
    found = _files(folder)
    for name in sorted(expected.keys() - set(found)):
        return f"{name} is missing"
    for name in found:
        if name not in expected:
            return f"{name} is not in {MANIFEST}"
        try:
            digest = _digest(folder / name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if digest != expected[name]:
            return f"{name} is not what was saved: its sha256 differs"
    return None


def replace_text(path: epath.Path, text: str) -> None:
    """Writes a file that is there with this whole content, or not at all."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # what is no local file
            os.fsync(file.fileno())
    draft.replace(path)


def _files(folder: epath.Path) -> list[str]:
    """Every file below a folder but the manifest, relative to it, in order."""
    found = []
    for inner in folder.iterdir():
        if inner.is_dir():
            found += [f"{inner.name}/{name}" for name in _files(inner)]
        else:
            found.append(inner.name)
    return sorted(name for name in found if name != MANIFEST)


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
