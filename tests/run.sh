#!/usr/bin/env bash
# Makes the environment with the test tools, then lints, checks types and tests, in one of three tiers.
#
#   bash tests/run.sh quick        before each commit: the quick unit tests, in 3 minutes
#   bash tests/run.sh              every behaviour once, the quick start included, in 10 minutes
#   bash tests/run.sh all          everything: more sizes, processes and Pythons, and the slow proofs
#   bash tests/run.sh rest         what `all` adds
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
# Nor does each of hundreds of starts compile all that it imports.
unset PYTHONDONTWRITEBYTECODE

case $* in
  quick) tests=(tests/unit -m "not slow and not medium") ;;
  "") tests=(-m "not slow") ;;
  all) tests=(-m "slow or not slow") ;;
  rest) tests=(-m slow) ;;
  *) exec "$python" -m pytest "$@" ;;
esac
if [[ $* != rest ]]; then
  "$bin/ruff" check .
  "$bin/ruff" format --check .
  "$bin/mypy"
fi
# Many tests wait for other processes: two run at a time, by the groups of tests/conftest.py.
exec "$python" -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations=20 "${tests[@]}"
