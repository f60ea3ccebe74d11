#!/usr/bin/env bash
# Runs nest-dist in a pod, and starts it again there where its exit code says that this helps:
#
#   bash launch/in_pod.sh train --gin_file=... --workdir=...
#
# When a process of the run is lost, the others end with 75 and meet again within seconds, without new
# pods. When a host is lost, its pod fails, and the JobSet makes all pods anew. A stop that is asked
# for (76), and whatever a restart cannot help, ends the pod with the same code.
set -uo pipefail

restarts=3 # in a row; a run of HEALTHY_SECONDS begins a new row
healthy_seconds=${HEALTHY_SECONDS:-600}
stopping=
process=
trap 'stopping=1; [[ -z $process ]] || kill -TERM "$process"' TERM INT HUP

for ((left = restarts; ; left--)); do
  rm -f "${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}" # a killed process leaves it behind
  began=$SECONDS
  nest-dist "$@" &
  process=$!
  # The signal of a stop ends `wait`, and not the process.
  while wait "$process"; code=$?; kill -0 "$process" 2>/dev/null; do :; done
  process=
  ((SECONDS - began < healthy_seconds)) || left=$restarts
  case $code in
    75 | 134 | 137) [[ -z $stopping ]] && ((left > 0)) || exit "$code" ;;
    *) exit "$code" ;;
  esac
  echo "in_pod.sh: nest-dist ended with $code; it starts again here ($left restarts left)" >&2
done
