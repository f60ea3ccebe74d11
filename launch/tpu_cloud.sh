# shellcheck shell=bash disable=SC2154  # the flags are tpu_pod.sh's, which sources this file
# Cloud TPU through gcloud: what is there, making it, reaching its workers, deleting it.

call() { # a command; with --dry_run it is shown as it could be typed, and not run
  if [[ ! $dry_run ]]; then
    "$@"
    return
  fi
  {
    printf '%q' "$1"
    printf ' %q' "${@:2}"
    echo
  } >&3
}

tpus() { # tpu-vm or queued-resources, verb, arguments
  call gcloud compute tpus "$@" --project="$project" --zone="$zone" --quiet </dev/null
}

only() { # names; of lines whose first word is one of them
  awk -v names=" $* " 'index(names, " " $1 " ")'
}

# NODE STATE WORKERS of each slice that exists.
existing() {
  tpus tpu-vm list --format='value(name.basename(),state,networkEndpoints.len())' |
    only "${nodes[@]}"
}

request_stays="the request stays in the queue, and the TPU costs from when it comes; the same command waits on, delete withdraws it"

# The state of the queued resource, or nothing.
request_state() {
  tpus queued-resources list --format='value(name.basename(),state.state)' |
    only "$name" | cut -f2
}

# absent, READY, GONE (preempted or ended: only to be deleted), or a state that will pass.
pod_state() {
  local found
  found=$(existing) || return
  awk -v slices="$slices" '
    $2 == "READY" { ready++ }
    $2 ~ /PREEMPTED|TERMINATED|UNKNOWN/ { gone = 1 }
    $2 != "READY" { other = $2 }
    NF { there++ }
    END { print gone ? "GONE" : !there ? "absent" : other ? other : ready == slices ? "READY" : "GONE" }
  ' <<<"$found"
}

create() {
  local state
  state=$(pod_state) ||
    fail "the TPUs of project '$project' in zone '$zone' cannot be listed; see above, and correct --project or --zone."
  case $state in
    READY) say "$name is there" && return ;;
    GONE) say "$name was preempted or ended; deleting what is left of it" && delete ;;
    absent) ;;
    *) fail "$name is $state; try again when that has passed, or delete it." ;;
  esac
  if [[ $queued ]]; then
    create_queued
  else
    say "creating $name, $accelerator_type in $zone"
    tpus tpu-vm create "$name" --accelerator-type="$accelerator_type" \
      --version="$runtime_version" "${spot[@]}" "${create_flags[@]}" ||
      fail "$name was not created; see above. Zones and accelerator types must fit: gcloud compute tpus accelerator-types list --zone=$zone"
  fi
  forget_keys
}

# The keys of machines that had these names before: ssh would take the new ones for an attack.
forget_keys() {
  local node words alias file
  for node in "${nodes[@]}"; do
    { tpus tpu-vm ssh "$node" --worker=all --command=true --dry-run || :; } | while read -r words; do
      [[ " $words " =~ " -o HostKeyAlias="([^ ]+) ]] || continue
      alias=${BASH_REMATCH[1]}
      [[ " $words " =~ " -o UserKnownHostsFile="([^ ]+) ]] || continue
      file=${BASH_REMATCH[1]}
      [[ ! -e $file ]] || ssh-keygen -R "$alias" -f "$file" &>/dev/null || :
    done
  done
}

create_queued() {
  local state shown='' limit=$((SECONDS + 60 * wait_minutes)) which=(--node-id="$name")
  ((slices == 1)) || which=(--node-count="$slices" --node-prefix="$name")
  state=$(request_state) || fail "the queued resources of zone '$zone' cannot be listed; see above."
  case $state in
    FAILED | SUSPEND*) delete && state= ;;
  esac
  trap 'say "$request_stays"; exit 130' INT TERM HUP
  if [[ ! $state ]]; then
    say "requesting $name, ${slices}x $accelerator_type in $zone, for at most $wait_minutes minutes"
    tpus queued-resources create "$name" "${which[@]}" --accelerator-type="$accelerator_type" \
      --runtime-version="$runtime_version" --valid-until-duration="${wait_minutes}m" \
      "${spot[@]}" "${create_flags[@]}" ||
      fail "$name was not requested; see above. Zones and accelerator types must fit: gcloud compute tpus accelerator-types list --zone=$zone"
  fi
  if [[ $dry_run ]]; then
    request_state
    trap - INT TERM HUP
    return
  fi
  while true; do
    state=$(request_state) || state=unknown
    [[ $state == "$shown" ]] || say "the request is $state"
    shown=$state
    case $state in
      ACTIVE) trap - INT TERM HUP && return ;;
      FAILED | SUSPEND*) delete && fail "the request ended as $state and was deleted." ;;
    esac
    ((SECONDS < limit)) || break
    sleep "$poll_seconds"
  done
  delete
  fail "no TPU came within --wait_minutes=$wait_minutes; the request was withdrawn."
}

confirm() {
  local answer=''
  [[ $yes || $dry_run ]] && return
  [[ -t 0 ]] || fail "nobody is there to ask whether $name may be deleted; give --yes."
  read -r -p "Delete $name in $zone of $project, with everything on its disks? [y/N] " answer
  [[ $answer == [yY]* ]] || fail "$name stays."
}

delete() {
  local request found node
  { request=$(request_state) && found=$(existing); } ||
    fail "the TPUs of zone '$zone' cannot be listed; see above."
  if [[ $dry_run ]]; then
    request=$queued found=$(printf '%s\n' "${nodes[@]}")
  fi
  if [[ $request ]]; then
    tpus queued-resources delete "$name" --force || fail "$name was not deleted; see above."
    return
  fi
  [[ $found ]] || say "there is no $name in $zone"
  while read -r node _; do
    [[ ! $node ]] || tpus tpu-vm delete "$node" || fail "$node was not deleted; see above."
  done <<<"$found"
}

on_workers() { # a command of worker.sh; its output on every worker; fails if it fails on one
  on_slices --command="bash nest_dist/launch/worker.sh $*"
}

# The number of the slice, where there are several, stands before the worker's.
on_slices() { # flags of gcloud compute tpus tpu-vm ssh NODE --worker=all
  local index pids=() pid code=0
  for index in "${!nodes[@]}"; do
    ssh_to "${nodes[index]}" --worker=all "$@" > >(sed "s/^/$(slice_prefix "$index")/") &
    if [[ $dry_run ]]; then wait; else pids+=($!); fi
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
  return "$code"
}

slice_prefix() { # index
  ((slices == 1)) || echo "$1."
}

ssh_to() { # node, flags; without gcloud's remarks on its connections
  tpus tpu-vm ssh "$@" --no-user-output-enabled
}
