#!/usr/bin/env bash
# Runs nest-dist as several processes on this machine, each with virtual CPU devices or with a GPU.
#
#   bash launch/local.sh                      the quick start: two processes learn handwritten digits
#   bash launch/local.sh --processes=2 --devices=2 -- --gin_file=runs/quickstart.gin --workdir=DIR
#   bash launch/local.sh --gpus=all -- --gin_file=runs/quickstart.gin --workdir=DIR
#
# What follows -- goes to `nest-dist train`, or to another command if its name comes first. The
# output of all processes is shown with their numbers. When one fails, all are ended, and the exit
# status is that process's. When this script or its terminal ends, the processes save and stop.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
processes=
devices=1
gpus=
port=
quickstart=
workdir=$top/workdirs/quickstart

usage() {
  sed -n '2,10p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
  echo "  --processes=N  processes (default 2; with --gpus one a GPU)"
  echo "  --gpus=N       NVIDIA GPUs, shared among the processes; all for those of this machine"
  echo "  --devices=N    virtual CPU devices of each process (default 1)"
  echo "  --port=N       port on which they meet, with the one below (default: free ones)"
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
    --gpus=*) gpus=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown flag '$1'; flags are --processes, --devices, --gpus and --port, and flags of nest-dist follow after --." ;;
  esac
  shift
done

# The GPUs that CUDA would show, one a line: all of this machine, or those that the caller names.
visible_gpus() {
  if [[ ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep . || true
    return
  fi
  command -v nvidia-smi >/dev/null ||
    fail "--gpus is '$gpus', but this machine has no nvidia-smi; install NVIDIA's driver."
  nvidia-smi --query-gpu=index --format=csv,noheader ||
    fail "--gpus is '$gpus', but nvidia-smi finds none; look above."
}

if [[ $gpus ]]; then
  listed=$(visible_gpus)
  mapfile -t visible < <(printf '%s' "$listed" | grep .)
  [[ $gpus != all ]] || gpus=${#visible[@]}
  number --gpus "$gpus" 1 64
  ((gpus <= ${#visible[@]})) || fail "--gpus is '$gpus', but this machine shows ${#visible[@]}; give less."
  # One process a GPU: each prepares its own batches and keeps its own GPU busy. NCCL links GPUs of
  # processes that do not see each other's.
  : "${processes:=$gpus}"
fi
: "${processes:=2}"
number --processes "$processes" 1 64
number --devices "$devices" 1 64
[[ -z $port ]] || number --port "$port" 2 65535
if [[ $quickstart ]]; then
  set -- train --gin_file=runs/quickstart.gin --workdir="$workdir"
elif [[ $# -eq 0 || $1 == -* ]]; then
  set -- train "$@"
fi

requirements=requirements.txt
if [[ $gpus ]]; then
  ((gpus % processes == 0)) ||
    fail "--processes is '$processes', which does not share $gpus GPUs evenly; choose another."
  share=$((gpus / processes))
  requirements="requirements-cuda.txt"
fi
python=$(bash "$top/launch/environment.sh" "$requirements")
if [[ -z $port ]]; then
  # Below those that the system gives to clients, one of which might take it before the run does.
  port=$("$python" - <<'END'
import random, socket
while True:
    port = random.randrange(10000, 32768)
    try:
        socket.socket().bind(("", port))
        socket.socket().bind(("", port - 1))
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

# With it no other user of this machine can speak for a process of the run.
NEST_DIST_SECRET=${NEST_DIST_SECRET:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
export NEST_DIST_SECRET
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices PYTHONUNBUFFERED=1
[[ ! $gpus ]] || export JAX_PLATFORMS=cuda
pids=()

signal_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}

# One TERM is enough: the processes agree among themselves on the step after which they stop.
# shellcheck disable=SC2317,SC2329  # called by the trap
stop() {
  stopping=1
  trap 'signal_all KILL' INT TERM
  kill -TERM -- "-${pids[0]}" 2>/dev/null || true
  # The terminal may be gone.
  echo "local.sh: the processes save a checkpoint and stop; once more to end them at once" >&2 || true
}
stopping=
trap stop INT TERM HUP
trap 'signal_all KILL' EXIT

# Job control gives each process a group of its own: a Ctrl-C reaches this script only, and a process
# is ended together with its workers. The subshell and sed outlive a TERM, to pass on the last words.
set -m
# However this script ends, even by KILL, its end of this pipe closes, and the processes are stopped.
exec {alive}> >(trap '' INT TERM HUP; mapfile -t pids; signal_all TERM)
for ((i = 0; i < processes; i++)); do
  peers=()
  [[ $processes -eq 1 ]] ||
    peers=(--coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i")
  (
    if [[ $gpus ]]; then
      CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${visible[*]:i * share:share}")
      export CUDA_VISIBLE_DEVICES
    fi
    trap : INT TERM HUP
    exec {alive}>&-
    "$python" -m nest_dist "$@" "${peers[@]}" 2>&1 | (
      trap '' INT TERM HUP
      exec sed -u "s/^/[$i] /"
    )
  ) 2>/dev/null &
  pids+=($!)
  echo "$!" >&"$alive"
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
