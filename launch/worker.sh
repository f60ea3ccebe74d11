#!/usr/bin/env bash
# What launch/tpu_pod.sh does on each worker; it copies this file there and calls it through ssh.
#
#   worker.sh setup                    makes the environment, and says what it is made of
#   worker.sh start RUN ARGUMENTS      starts nest-dist detached; base64 of NUL-ended arguments
#   worker.sh status                   WORKER STATE CODE RUN; STATE is idle, running, ended,
#                                      stopped (on request) or lost (vanished without a code)
#   worker.sh log LINES [follow]       the last lines of the latest run
#   worker.sh end SECONDS              lets the run end by itself that long, then kills it
#   worker.sh stop SECONDS             asks the run to save and stop, then the same
#   worker.sh tensorboard PORT         shows the folder of the latest run
#
# gcloud repeats a command whose connection broke, so each of these may be called twice.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=$HOME/.nest_dist
lock=${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}
metadata=http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes
mkdir -p "$state/logs"
chmod 700 "$state"

number() { # of this worker in its slice
  [[ -s $state/number ]] ||
    curl -sf -m 10 -H 'Metadata-Flavor: Google' "$metadata/agent-worker-number" >"$state/number" ||
    fail "the metadata server does not say which worker this is; is this a Cloud TPU VM?"
  cat "$state/number"
}

say() {
  echo "worker $(content number): $1" >&2
}

fail() {
  say "$1"
  exit 2
}

content() { # of a file of the state, or nothing
  cat "$state/$1" 2>/dev/null || true
}

# The supervisor leads a process group. After a reboot its number may be someone else's.
alive() {
  local group boot
  read -r group boot < <(content group) || return 1
  [[ $boot == "$(cat /proc/sys/kernel/random/boot_id)" ]] && kill -0 -- "-$group" 2>/dev/null
}

signal() { # TERM or KILL
  local group
  read -r group _ < <(content group) && kill "-$1" -- "-$group" 2>/dev/null || true
}

wait_for_end() { # seconds
  local limit=$((SECONDS + $1))
  while alive && ((SECONDS < limit)); do sleep 0.2; done
}

setup() {
  local python packages code secret=$HOME/nest_dist.secret
  ! alive || fail "run $(content run) is under way; stop it before setting up."
  # Images of TPU VMs come with an older Python.
  python=$(FETCH_PYTHON=3.12 bash "$top/launch/environment.sh" requirements-tpu.txt)
  echo "$python" >"$state/python"
  if [[ -e $secret ]]; then
    chmod 600 "$secret"
    mv -f "$secret" "$state/secret"
  fi
  packages=$("$python" -c '
import hashlib, importlib.metadata, platform
packages = sorted({f"{d.name} {d.version}" for d in importlib.metadata.distributions()})
digest = hashlib.sha256("\n".join(packages).encode()).hexdigest()
print(f"Python {platform.python_version()}, {len(packages)} packages ({digest[:12]})")')
  code=$(cd "$top" && LC_ALL=C sort .setup | xargs -d '\n' cat | sha256sum | cut -c1-12)
  echo "$(number) has $packages, code ($code)"
}

as_root() {
  if sudo -n true 2>/dev/null; then sudo -n "$@"; else "$@"; fi
}

# libtpu leaves its lock file behind when it is killed and then refuses all later processes. Whoever
# holds the lock, or a chip, has it open.
clear_lock() {
  local held pid
  held=$(as_root find /proc/[0-9]*/fd -maxdepth 1 \( -lname "$lock" -o -lname '/dev/accel*' \
    -o -lname '/dev/vfio/[0-9]*' \) -print -quit 2>/dev/null || true)
  if [[ $held ]]; then
    pid=${held#/proc/} pid=${pid%%/*}
    fail "process $pid ($(cat "/proc/$pid/comm" 2>/dev/null)) uses the TPU; end it first."
  fi
  [[ ! -e $lock ]] && return
  as_root rm -f "$lock" || fail "$lock is left by a dead process and cannot be removed; remove it."
  say "removed $lock, whose owner is dead"
}

start() { # run, arguments in base64
  exec 9>"$state/starting" && flock 9
  [[ $(content run) != "$1" ]] || return 0
  ! alive || fail "run $(content run) is under way; stop it first."
  [[ -s $state/python ]] || fail "nothing is set up here; run launch/tpu_pod.sh setup."
  clear_lock
  rm -f "$state"/{status,stopped,group}
  echo "$2" >"$state/arguments"
  echo "$1" >"$state/run"
  ln -sfn "logs/$1" "$state/log"
  # A session of its own outlives the connection.
  setsid bash "${BASH_SOURCE[0]}" supervise </dev/null >"$state/logs/$1" 2>&1 9>&- &
  local limit=$((SECONDS + 30))
  until [[ -s $state/group ]]; do
    ((SECONDS < limit)) || fail "the run did not start within 30 s; look at the logs."
    sleep 0.05
  done
}

supervise() {
  local code=0 arguments=()
  trap : INT TERM HUP # these end the run; its code is still to be written
  mapfile -d '' -t arguments < <(base64 -d "$state/arguments")
  cd "$top"
  echo "$$ $(cat /proc/sys/kernel/random/boot_id)" >"$state/group"
  NEST_DIST_SECRET=$(content secret) PYTHONUNBUFFERED=1 \
    "$(content python)" -m nest_dist "${arguments[@]}" || code=$?
  echo "$code" >"$state/status"
}

status() {
  local word=idle code
  code=$(content status)
  if [[ $(content run) ]]; then
    if alive; then
      word=running
    elif [[ -e $state/stopped ]]; then
      word=stopped
    elif [[ $code ]]; then
      word=ended
    else
      word=lost
    fi
  fi
  echo "$(number) $word ${code:--} $(content run)"
}

log() { # lines, follow or nothing
  local follow=()
  [[ ${2:-} != follow ]] || follow=(-F --pid="$PPID")
  [[ -e $state/log ]] || fail "no run was started here."
  exec tail -n "$1" "${follow[@]}" "$state/log" 2>/dev/null
}

end() { # seconds
  wait_for_end "$1"
  while alive; do
    signal KILL
    sleep 0.1
  done
}

stop() { # seconds
  # Also between two attempts: then it is not started again.
  [[ $(content status) == 0 ]] || touch "$state/stopped"
  signal TERM
  end "$1"
}

tensorboard() { # port
  local argument workdir='' reader=()
  while IFS= read -r -d '' argument; do
    [[ $argument != --workdir=* ]] || workdir=${argument#--workdir=}
  done < <(content arguments | base64 -d)
  [[ $workdir ]] || fail "no run with --workdir was started here."
  # The fast reader does not know the credentials that a Cloud VM has.
  [[ $workdir != gs://* ]] || reader=(--load_fast=false)
  cd "$top"
  exec "$(content python)" -m tensorboard.main --logdir="$workdir/tensorboard" --port="$1" "${reader[@]}"
}

"$@"
