# shellcheck shell=bash disable=SC2154  # the flags are tpu_pod.sh's, which sources this file
# A run on all workers of a TPU: setting up, starting, watching, starting again.

setup() {
  local made kinds node tarball=$scratch/nest_dist.tar.gz secret=$scratch/nest_dist.secret
  local worker=nest_dist/launch/worker.sh
  # It keeps strangers out of the run. As a file, it shows in no list of processes.
  [[ -e $secret ]] ||
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$secret")
  # Made once: a restart must not bring what was edited here meanwhile.
  [[ -e $tarball ]] ||
    call tar -C "$top" --exclude=__pycache__ --exclude=.venv -czf "$tarball" \
      gin launch nest_dist pyproject.toml README.md LICENSE
  for node in "${nodes[@]}"; do
    {
      tpus tpu-vm scp "$tarball" "$node:nest_dist.tar.gz" --worker=all &&
        tpus tpu-vm scp "$secret" "$node:nest_dist.secret" --worker=all
    } || fail "the project was not copied to $node; see above."
  done
  # What else lies there stays; of what an earlier setup brought, a file that is gone here goes.
  made=$(on_slices --command="set -e
    if [ -e $worker ] && bash $worker status | grep -q ' running '; then
      echo 'a run is under way; stop it before setting up' >&2
      exit 2
    fi
    mkdir -p nest_dist
    touch nest_dist/.setup
    (cd nest_dist && xargs -d '\n' rm -f <.setup)
    tar -tzf nest_dist.tar.gz | grep -v /\$ >nest_dist/.setup
    tar -xzf nest_dist.tar.gz -C nest_dist
    bash $worker setup") || fail "not every worker was set up; see above."
  [[ ! $dry_run ]] || return 0
  sort -V <<<"$made" | sed 's/^/worker /' >&2
  kinds=$(cut -d' ' -f2- <<<"$made" | sort -u | wc -l)
  ((kinds == 1)) || fail "the workers differ; delete the TPU and create it anew."
}

# Its last part, a sum of the arguments, tells whether a run is the one that is asked for.
attempt_name() {
  echo "$(date +%Y%m%d-%H%M%S)-$$-$(cksum <<<"$arguments" | cut -d' ' -f1)"
}

train() { # name of the attempt
  say "starting run $1"
  on_workers start "$1" "$arguments" && return
  # Those that started would wait for the others; a run that was there before is left alone.
  ! statuses | grep -q " $1\$" || on_workers end 0
  fail "run $1 did not start on every worker; see above."
}

# WORKER STATE CODE RUN of every worker.
statuses() {
  on_workers status | sort -V
}

status() {
  local state worker word code run request=''
  state=$(pod_state) || fail "the TPUs of zone '$zone' cannot be listed; see above."
  [[ $dry_run ]] || echo "$name: $state"
  [[ $state != absent ]] || request=$(request_state)
  [[ ! $request ]] || echo "its request is $request: $request_stays"
  [[ $state == READY || $dry_run ]] || return 1
  statuses | while read -r worker word code run; do
    echo "worker $worker: $(describe "$word" "$code" "$run")"
  done
}

describe() { # state, code, run
  local how
  case $2 in
    0) how="done" ;;
    76) how="status 76: it saved a checkpoint and stopped" ;;
    129 | 13[0-9] | 14[0-3]) how="status $2: signal $(kill -l "$2")" ;;
    -) how="without a status: it was killed, or its machine went down" ;;
    *) how="status $2" ;;
  esac
  case $1 in
    idle) echo "no run" ;;
    running) echo "run $3 is under way" ;;
    stopped) echo "run $3 was stopped, $how" ;;
    *) echo "run $3 ended, $how" ;;
  esac
}

logs() { # lines of each, then "follow" or nothing
  local found index=-1 node count worker
  found=$(existing) || fail "the TPUs of zone '$zone' cannot be listed; see above."
  [[ ! $dry_run ]] || found=$(printf '%s - 1\n' "${nodes[@]}")
  while read -r node _ count; do
    index=$((index + 1))
    for ((worker = 0; worker < count; worker++)); do
      ssh_to "$node" --worker="$worker" --command="bash nest_dist/launch/worker.sh log $*" |
        sed -u "s/^/[$(slice_prefix "$index")$worker] /" &
      [[ ! $dry_run ]] || wait
    done
  done <<<"$found"
  wait
}

# In the background, as a group that ends as one.
follow() { # lines of each
  set -m
  logs "$1" follow &
  follower=$!
  set +m
}

unfollow() {
  [[ ! $follower ]] || kill -TERM -- "-$follower" 2>/dev/null || true
  [[ ! $follower ]] || wait "$follower" 2>/dev/null || true
  follower=
}

# Shows the logs until the run is over. `outcome` is then its exit status, "stopped" if that was
# asked for, "lost" if a worker left no status, "gone" if the TPU is, "silent" if nothing answers.
watch() { # lines to begin with
  local workers=0 found silent=0 worker word code run
  trap 'say "the run goes on; attach shows it again, stop ends it"; exit 130' INT
  follow "$1"
  outcome=
  while [[ ! $outcome ]]; do
    sleep "$poll_seconds"
    if ! all_answer; then
      silent=$((silent + 1))
      unanswered "$silent"
      continue
    fi
    silent=0
    grep -qv ' running ' <<<"$found" || continue
    # The others learn of it within seconds, or never.
    on_workers end 10 2>"$scratch/errors" || true
    all_answer || continue
    outcome=$(verdict <<<"$found")
    while read -r worker word code run; do
      say "worker $worker: $(describe "$word" "$code" "$run")"
    done <<<"$found"
  done
  sleep 1 # the last lines are on their way
  unfollow
  trap - INT
}

# Sets `found` to the statuses of all `workers`; fails while one is missing.
all_answer() {
  ((workers)) || workers=$(existing | awk '{ sum += $3 } END { print sum + 0 }') || workers=0
  found=$(statuses 2>"$scratch/errors") || true
  ((workers && workers == $(grep -c . <<<"$found")))
}

unanswered() { # how often in a row
  cat "$scratch/errors" >&2
  case $(pod_state 2>/dev/null) in
    absent | GONE) outcome=gone && say "the TPU is gone" && return ;;
  esac
  say "not all workers answer; the run may well go on (look $1 of 10)"
  (($1 < 10)) || outcome=silent
}

# Of the statuses of all workers the one that counts: a request to stop, then a code with which a
# restart is useless, then any that is not 0, then that there is none.
verdict() {
  awk '
    $2 == "stopped" { stopped = 1 }
    $3 ~ /^(1|2|126|127|130)$/ && !useless { useless = $3 }
    $3 ~ /^[1-9]/ && !other { other = $3 }
    $3 == "-" { lost = 1 }
    END { print stopped ? "stopped" : useless ? useless : other ? other : lost ? "lost" : 0 }
  '
}

# Ends this program as the run ended.
finish() {
  case $outcome in
    0) say "the run is done; $name still costs, delete ends that" && exit 0 ;;
    stopped) say "the run was stopped; the same command goes on from its checkpoint" && exit 76 ;;
    1 | 2 | 126 | 127 | 130) say "the run ended with status $outcome; a restart would not help" ;;
    lost | gone | silent | unprepared) say "the run is $outcome; start it again" && exit 75 ;;
    *) say "the run ended with status $outcome; start it again" ;;
  esac
  exit "$outcome"
}

attach() {
  if [[ $dry_run ]]; then
    statuses && logs "$lines" follow
    return
  fi
  statuses | grep -qv ' idle ' || fail "no run was started on $name."
  watch "$lines"
  finish
}

run() {
  local base attempt=0 pause=$backoff_seconds began found
  base=$(attempt_name)
  create
  found=$(statuses 2>/dev/null | awk '$2 == "running" { print $4; exit }') || true
  case $found in
    '') (setup && train "$base.0") || unstarted ;;
    *-"${base##*-}".*) say "run $found is under way; going on with it" ;;
    *) fail "another run, $found, is under way; attach to it or stop it." ;;
  esac
  [[ ! $dry_run ]] || return 0
  while true; do
    began=$SECONDS
    [[ ${outcome:-} == unprepared ]] || watch +1
    case $outcome in
      0 | 1 | 2 | 126 | 127 | 130 | stopped) finish ;;
    esac
    if ((attempt == max_restarts)); then
      say "$max_restarts restarts were all that --max_restarts allows"
      finish
    fi
    ((SECONDS - began < 600)) || pause=$backoff_seconds
    attempt=$((attempt + 1))
    say "restart $attempt of $max_restarts in $pause s"
    sleep "$pause"
    if [[ $(statuses 2>/dev/null | verdict) == stopped ]]; then outcome=stopped && finish; fi
    pause=$((pause * 2 < 300 ? pause * 2 : 300))
    outcome=
    (
      on_workers end 0 >/dev/null 2>&1 || true
      create && setup && train "$base.$attempt"
    ) || outcome=unprepared
  done
}

# The first start failed: for a TPU that is gone another can be made, all else needs a person.
unstarted() {
  case $(pod_state 2>/dev/null) in
    absent | GONE) outcome=unprepared && say "the TPU is gone" ;;
    *) exit 2 ;;
  esac
}

tensorboard() {
  say "http://localhost:$port shows the run; Ctrl-C ends this"
  # A terminal there ends TensorBoard with the connection.
  tpus tpu-vm ssh "${nodes[0]}" --worker=0 --ssh-flag=-tt --ssh-flag="-L $port:localhost:$port" \
    --command="bash nest_dist/launch/worker.sh tensorboard $port"
}
