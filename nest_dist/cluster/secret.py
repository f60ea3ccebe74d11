"""The secret of a run, by which its processes know each other.

The launcher makes it and gives it to all of them, by a file or an environment variable. It never
travels between them. Leader and process each prove that they know it, by an HMAC over fresh numbers
of both, so what a stranger has overheard is of no use later.
"""

import hmac
import os
import pathlib

from nest_dist.base import failures

VARIABLE = "NEST_DIST_SECRET"
SHORTEST = 16  # characters; a launcher makes 64
LONGEST = 4096


def read(path: str | None) -> bytes:
    """The secret in a file, else that of the environment; empty without either.

    Raises:
        BadInput: if the file cannot be read, others may read it, or the secret is short.
    """
    text, where = os.environ.get(VARIABLE, ""), VARIABLE
    if path is not None:
        file, where = pathlib.Path(path).expanduser(), f"--secret_file {path}"
        try:
            with file.open("rb") as opened:  # a device may have no end
                text = opened.read(LONGEST + 1).decode().strip()
            mode = file.stat().st_mode
        except (OSError, ValueError) as error:
            raise failures.BadInput(
                f"{where} cannot be read ({failures.cause(error)}); give a file with a secret."
            ) from None
        if mode & 0o004:
            raise failures.BadInput(f"{where} can be read by anyone; chmod o-r it.")
    elif not text:
        return b""
    if len(text) < SHORTEST:
        raise failures.BadInput(
            f"the secret of {where} has {len(text)} characters; give {SHORTEST} or more, as "
            "`openssl rand -hex 32` makes them."
        )
    if len(text) > LONGEST:
        raise failures.BadInput(
            f"{where} has over {LONGEST} characters; give a file with a secret."
        )
    return text.encode(errors="surrogateescape")


def proof(secret: bytes, *words: str | int) -> str:
    """Shows that its maker knows the secret: the HMAC of `words`, in hexadecimal digits."""
    text = "\n".join(map(str, words)).encode()
    return hmac.new(secret, text, "sha256").hexdigest()


def is_proof(text: str, secret: bytes, *words: str | int) -> bool:
    """Whether a text, which may come from anyone, is the `proof` of these words."""
    return hmac.compare_digest(text.encode(errors="replace"), proof(secret, *words).encode())
