#!/usr/bin/env bash
# Trains on Cloud TPU: one VM, a pod slice, or several slices.
#
#   bash launch/tpu_pod.sh COMMAND [--flag=VALUE ...] [-- flags of nest-dist train]
#
#   create       makes the TPU, or says that it is there
#   setup        brings project and packages to every worker; quick when repeated
#   train        starts nest-dist on all workers; it goes on without this machine
#   status       what the run does on each worker
#   logs         what the workers print, each line with its worker
#   attach       the same until the run ends; Ctrl-C leaves it running
#   stop         lets the run save a checkpoint, and ends it
#   tensorboard  shows the run's TensorBoard on this machine
#   delete       deletes the TPU, after asking
#   run          create, setup, train and attach; starts again whatever dies or is preempted, from
#                the last checkpoint, unless the exit status says that this would not help
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
project=${PROJECT_ID:-} zone=${ZONE:-} name=${TPU_NAME:-}
accelerator_type=${ACCELERATOR_TYPE:-} runtime_version=${RUNTIME_VERSION:-}
slices=1 queued='' spot=() create_flags=() wait_minutes=60
max_restarts=20 backoff_seconds=10 poll_seconds=20 grace_seconds=120
lines=20 follow='' port=6006 yes='' dry_run=''
arguments='' nodes=() follower=''

usage() {
  sed -n '2,17p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
  cat <<'EOT'

  --project=, --zone=, --name=      of the TPU; or PROJECT_ID, ZONE, TPU_NAME in the environment
  --accelerator_type=               such as v5litepod-16; or ACCELERATOR_TYPE
  --runtime_version=                such as v2-alpha-tpuv5-lite; or RUNTIME_VERSION
  --slices=N                        slices of that type (default 1; several are always queued)
  --queued                          ask through a queued resource, and wait for it
  --wait_minutes=N                  for so long at most (default 60)
  --spot                            cheaper, and preempted at any time
  --create_flag=FLAG                one more flag of gcloud's create; repeatable
  --max_restarts=N                  of run (default 20)
  --backoff_seconds=N               before the first restart; doubles up to 5 minutes (default 10)
  --poll_seconds=N                  between looks at the run (default 20)
  --grace_seconds=N                 for saving, before a run is killed (default 120)
  --lines=N, --follow               of logs: the last lines of each worker (default 20); go on
  --port=N                          of tensorboard (default 6006)
  --yes                             delete without asking
  --dry_run                         show the commands, and run none
EOT
}

say() {
  echo "tpu_pod.sh: $1" >&2
}

fail() {
  say "$1"
  exit 2
}

number() { # flag, value, lowest
  [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ && $2 -ge $3 ]] ||
    fail "$1 is '$2'; give a whole number from $3 to 999999."
}

required() { # flag, its value, environment variable
  [[ $2 ]] || fail "$1 is not given; give $1=VALUE or set $3."
}

# shellcheck source=launch/tpu_cloud.sh
source "$top/launch/tpu_cloud.sh"
# shellcheck source=launch/tpu_run.sh
source "$top/launch/tpu_run.sh"

command=${1:-}
case $command in
  create | setup | train | status | logs | attach | stop | tensorboard | delete | run) shift ;;
  -h | --help | '') usage && exit ;;
  *) fail "unknown command '$command'; --help lists them." ;;
esac
while [[ $# -gt 0 ]]; do
  case $1 in
    --project=*) project=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --accelerator_type=*) accelerator_type=${1#*=} ;;
    --runtime_version=*) runtime_version=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --queued) queued=1 ;;
    --wait_minutes=*) wait_minutes=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --create_flag=*) create_flags+=("${1#*=}") ;;
    --max_restarts=*) max_restarts=${1#*=} ;;
    --backoff_seconds=*) backoff_seconds=${1#*=} ;;
    --poll_seconds=*) poll_seconds=${1#*=} ;;
    --grace_seconds=*) grace_seconds=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --follow) follow=follow ;;
    --port=*) port=${1#*=} ;;
    --yes) yes=1 ;;
    --dry_run) dry_run=1 ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown flag '$1'; --help lists them, and flags of nest-dist train follow after --." ;;
  esac
  shift
done
for flag in slices poll_seconds port; do number "--$flag" "${!flag}" 1; done
for flag in wait_minutes max_restarts backoff_seconds grace_seconds lines; do
  number "--$flag" "${!flag}" 0
done
required --project "$project" PROJECT_ID
required --zone "$zone" ZONE
required --name "$name" TPU_NAME
case $command in
  create | run)
    required --accelerator_type "$accelerator_type" ACCELERATOR_TYPE
    required --runtime_version "$runtime_version" RUNTIME_VERSION
    ;;
esac
case $command in
  train | run)
    [[ $# -gt 0 ]] || fail "nothing follows after --; give the flags of nest-dist train, as in: -- --gin_file=runs/quickstart.gin --workdir=gs://BUCKET/FOLDER"
    # One word that no shell on the way can change.
    arguments=$(printf '%s\0' train "$@" | base64 | tr -d '\n')
    ((${#arguments} < 100000)) || fail "what follows -- is ${#arguments} bytes long in base64, of 100000; put bindings into a gin file."
    ;;
  *) [[ $# -eq 0 ]] || fail "$command takes nothing after --, not '$1'." ;;
esac
if ((slices == 1)); then
  nodes=("$name")
else
  queued=1
  for ((slice = 0; slice < slices; slice++)); do nodes+=("$name-$slice"); done
fi
command -v gcloud >/dev/null || fail "gcloud is not installed; see cloud.google.com/sdk/docs/install."

scratch=$(mktemp -d)
trap 'unfollow; [[ $dry_run ]] || rm -rf "$scratch"' EXIT # what is shown can be typed
exec 3>&1 # where --dry_run shows commands, whatever their output is used for
case $command in
  delete) confirm && delete ;;
  logs) logs "$lines" $follow ;;
  stop) on_workers stop "$grace_seconds" || fail "not every worker could be told; see above." ;;
  train) train "$(attempt_name)" ;;
  *) "$command" ;;
esac
