#!/usr/bin/env bash
# Makes the environment with the test tools, then runs the linter, the type checker and all tests.
#
#   bash tests/run.sh              everything but the slow proofs
#   bash tests/run.sh -m slow      the slow proofs: minutes rather than seconds each
#   bash tests/run.sh -k resume    whatever pytest understands
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
python=$(bash launch/environment.sh requirements-test.txt)
bin=$(dirname "$python")

export JAX_PLATFORMS=cpu
# Many tests start the same small programs; each is compiled once.
export JAX_COMPILATION_CACHE_DIR=$top/.pytest_cache/compiled
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
if [[ $# -eq 0 ]]; then
  "$bin/ruff" check .
  "$bin/ruff" format --check .
  "$bin/mypy"
  # Many tests wait for other processes: two run at a time, by the groups of tests/conftest.py.
  set -- -n 2 --dist loadgroup --no-loadscope-reorder --durations=20
fi
exec "$python" -m pytest "$@"
