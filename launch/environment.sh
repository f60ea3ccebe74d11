#!/usr/bin/env bash
# Makes the environment .venv at the top of the repository from a hash-pinned requirements file, and
# prints the path of its Python. Does nothing where that was done before.
#
#   launch/environment.sh requirements.txt
#
# PYTHON names the interpreter to build on; without it the first of python3, python3.13, python3.12
# and python3.11 that is new enough is taken. Where there is none and FETCH_PYTHON names a version,
# uv fetches that one. NEST_DIST_PYTHON names a Python that has the packages already, as in a
# container or a cluster's own environment: then that one is used and nothing is made.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=$top/launch/$1
venv=$top/.venv
uv_version=0.13.9

fail() {
  echo "environment: $1" >&2
  exit 2
}

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

fetch_python() { # version
  echo "environment: fetching Python $1" >&2
  {
    python3 -m pip --disable-pip-version-check install --quiet --user "uv==$uv_version" >&2 &&
      python3 -m uv python install "$1" >&2 &&
      python3 -m uv python find "$1"
  } || fail "Python $1 could not be fetched; look above, or install a Python and set PYTHON to its path."
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  if [[ ${FETCH_PYTHON:-} ]]; then
    fetch_python "$FETCH_PYTHON"
    return
  fi
  fail "no Python 3.11 or newer among ${PYTHON:-python3 python3.13 python3.12 python3.11}; install one, or set PYTHON to its path."
}

if [[ ${NEST_DIST_PYTHON:-} ]]; then
  new_enough "$NEST_DIST_PYTHON" ||
    fail "NEST_DIST_PYTHON is '$NEST_DIST_PYTHON', which is no Python 3.11 or newer; correct or unset it."
  echo "$NEST_DIST_PYTHON"
  exit
fi

if [[ ! -x $venv/bin/python ]] || ! new_enough "$venv/bin/python"; then
  python=$(find_python)
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python lacks the modules venv and ensurepip; install them (on Debian: apt install python3-venv)."
  echo "environment: making $venv with $("$python" --version)" >&2
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi

# The stamp of a finished installation: the file's content and where the repository lies.
stamp=$venv/installed-$1-$(cat "$requirements" "$top/pyproject.toml" <(echo "$top") | sha256sum | cut -c1-16)
if [[ ! -e $stamp ]]; then
  size="800 MB"
  [[ $1 != *-cuda.txt ]] || size="6 GB" # most of it NVIDIA's libraries
  echo "environment: installing $1, about $size, once" >&2
  # Of most modules nothing is ever imported, so Python compiles those that are.
  pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-cache-dir install --quiet --no-compile)
  "${pip[@]}" --require-hashes --requirement "$requirements" >&2 ||
    fail "the packages of launch/$1 could not be installed; look above, mend the network or the disk, and run this again."
  "${pip[@]}" --no-deps --no-build-isolation --editable "$top" >&2 ||
    fail "nest_dist itself could not be installed; look above."
  touch "$stamp"
fi
echo "$venv/bin/python"
