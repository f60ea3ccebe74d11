#!/usr/bin/env bash
# The two steps of launch/Dockerfile: first the packages, which rarely change, then nest_dist itself.
#
#   image.sh packages cpu|tpu|cuda   makes /opt/nest_dist with the pinned packages of that device
#   image.sh program                 installs nest_dist there
#
# PREFIX names another folder than /opt/nest_dist.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prefix=${PREFIX:-/opt/nest_dist}

fail() {
  echo "image: $1" >&2
  exit 2
}

pip() {
  "$prefix/bin/python" -m pip --disable-pip-version-check --no-cache-dir install --quiet "$@"
}

case ${1:-} in
  packages)
    case ${2:-} in
      cpu) requirements="requirements.txt" ;;
      tpu) requirements="requirements-tpu.txt" ;;
      cuda) requirements="requirements-cuda.txt" ;;
      *) fail "DEVICE is '${2:-}', which is unknown; known are cpu, tpu, cuda." ;;
    esac
    "${PYTHON:-python3}" -m venv "$prefix"
    # Compiled here: the user of the image may not write there, and each start would compile it.
    pip --require-hashes --requirement "$top/launch/$requirements"
    ;;
  program) pip --no-deps --no-build-isolation "$top" ;;
  *) fail "the step is '${1:-}', which is unknown; known are packages, program." ;;
esac
