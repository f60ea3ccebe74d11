#!/usr/bin/env bash
# Runs nest-dist as several processes on this machine, each with virtual CPU devices.
#
#   bash launch/local.sh                      the quick start: two processes learn handwritten digits
#   bash launch/local.sh --processes=2 --devices=2 -- --gin_file=runs/quickstart.gin --workdir=DIR
#
# What follows -- goes to `nest-dist train`, or to another command if its name comes first. The
# output of all processes is shown with their numbers. When one fails, all are ended, and the exit
# status is that process's.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
processes=2
devices=1
port=
quickstart=
workdir=$top/workdirs/quickstart

usage() {
  sed -n '2,9p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
  echo "  --processes=N  processes (default 2)"
  echo "  --devices=N    virtual CPU devices of each process (default 1)"
  echo "  --port=N       port on which they meet (default: a free one)"
}

fail() {
  echo "local.sh: $1" >&2
  exit 2
}

number() { # flag, value, lowest, highest
  [[ $2 =~ ^[0-9]+$ && $2 -ge $3 && $2 -le $4 ]] ||
    fail "$1 is '$2'; give a whole number from $3 to $4."
}

[[ $# -gt 0 ]] || quickstart=1
while [[ $# -gt 0 ]]; do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown flag '$1'; flags are --processes, --devices and --port, and flags of nest-dist follow after --." ;;
  esac
  shift
done
number --processes "$processes" 1 64
number --devices "$devices" 1 64
[[ -z $port ]] || number --port "$port" 1 65535
if [[ $quickstart ]]; then
  set -- train --gin_file=runs/quickstart.gin --workdir="$workdir"
elif [[ $# -eq 0 || $1 == -* ]]; then
  set -- train "$@"
fi

python=$(bash "$top/launch/environment.sh" requirements.txt)
if [[ -z $port ]]; then
  # Below those that the system gives to clients, one of which might take it before the run does.
  port=$("$python" - <<'END'
import random, socket
while True:
    port = random.randrange(10000, 32768)
    try:
        socket.socket().bind(("", port))
    except OSError:
        continue
    print(port)
    break
END
)
fi

if [[ $quickstart ]]; then
  echo "Two processes learn handwritten digits; checkpoints, metrics and configuration go to"
  echo "$workdir"
  [[ ! -d $workdir/checkpoints ]] || echo "That run was started before: it goes on where it was."
fi

export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices PYTHONUNBUFFERED=1
pids=()

signal_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}

# One TERM is enough: the processes agree among themselves on the step after which they stop.
# shellcheck disable=SC2317,SC2329  # called by the trap
stop() {
  stopping=1
  echo "local.sh: the processes save a checkpoint and stop; once more to end them at once" >&2
  trap 'signal_all KILL' INT TERM
  kill -TERM -- "-${pids[0]}" 2>/dev/null || true
}
stopping=
trap stop INT TERM
trap 'signal_all KILL' EXIT

# Job control gives each process a group of its own: a Ctrl-C reaches this script only, and a process
# is ended together with its workers. The subshell and sed outlive a TERM, to pass on the last words.
set -m
for ((i = 0; i < processes; i++)); do
  peers=()
  [[ $processes -eq 1 ]] ||
    peers=(--coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i")
  (
    trap : INT TERM
    "$python" -m nest_dist "$@" "${peers[@]}" 2>&1 | (
      trap '' INT TERM
      exec sed -u -e '/^\[Gloo\] Rank .* is connected/d' -e "s/^/[$i] /"
    )
  ) 2>/dev/null &
  pids+=($!)
done
set +m

describe() { # exit status
  case $1 in
    76) echo "status 76: it saved a checkpoint and stopped; the same command goes on from there" ;;
    129 | 13[0-9] | 14[0-3]) echo "status $1: signal $(kill -l "$1")" ;;
    *) echo "status $1" ;;
  esac
}

status=0
declare -A number_of # process id -> process number, of those that still run
for ((i = 0; i < processes; i++)); do number_of[${pids[i]}]=$i; done
while [[ ${#number_of[@]} -gt 0 ]]; do
  code=0
  ended=
  wait -n -p ended "${!number_of[@]}" || code=$?
  [[ ${ended:-} ]] || continue # a trap came first
  i=${number_of[$ended]}
  unset "number_of[$ended]"
  if [[ $code -ne 0 && $status -eq 0 ]]; then
    status=$code
    echo "local.sh: process $i ended with $(describe "$code")" >&2
    if [[ ! $stopping ]]; then
      # A failure of all is told by all; whoever is still there then waits for one that is gone.
      sleep 3
      signal_all KILL
    fi
  fi
done
trap - EXIT

if [[ $quickstart && $status -eq 0 ]]; then
  shown=${workdir#"$PWD"/}
  cat <<EOT

Next:
  see its curves and images     .venv/bin/tensorboard --logdir=$shown/tensorboard
  measure a checkpoint          .venv/bin/nest-dist evaluate --workdir=$shown
  train on from where it ended  bash launch/local.sh -- --gin_file=runs/quickstart.gin \\
                                  --workdir=$shown --gin_bindings="Run.num_epochs = 14"
  try another learning rate     bash launch/local.sh -- --gin_file=runs/quickstart.gin \\
                                  --workdir=workdirs/faster \\
                                  --gin_bindings="AdamW.peak_learning_rate = 4e-3"
  start this one anew           rm -r $shown
EOT
fi
exit "$status"
