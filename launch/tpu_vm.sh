#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one host or a pod slice, from this machine, by gcloud.
#
#   bash launch/tpu_vm.sh --name=hope --zone=us-east5-a --type=v5p-8 --spot keep -- \
#       --config=experiments/language_model.py:hope-60m --workdir=gs://BUCKET/60m
#
# Verbs, each a step, in the order given:
#   create   asks for the machines, in the queue where there are none free
#   wait     until they are there
#   copy     this checkout, as it is committed, to each of them
#   install  Python and the package; mounts the share of --mount
#   run      hope train with what stands behind --, on all of them, in the background
#   log      follows what the first one prints
#   status   of the machines, and the run's exit code if it has ended
#   delete   the machines, and the request for them
#   keep     all of that, from create to a run that has ended: machines that are preempted are asked for
#            again, and the run goes on from its last checkpoint
# Flags:
#   --name=NAME --zone=ZONE   of the machines
#   --type=TYPE               such as v5p-8 (4 chips), v5litepod-16, v6e-8
#   --project=PROJECT         that pays; gcloud's own if not given
#   --spot                    cheaper machines, which may be taken away at any time
#   --mount=SERVER:/SHARE     an NFS share (Filestore) that all of them see, as /mnt/hope: where runs lie that
#                             are to outlive a preemption, or have several hosts, unless they lie in a bucket
#   --dry-run                 shows the commands, and runs none
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
name='' zone='' type='' project='' spot='' mount=''
read_flags "name zone type project spot mount" \
    "create wait copy install run log status delete keep" "$@"
need name zone
[ ${#VERBS[@]} -gt 0 ] || fail "nothing to do; see --help"
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")

# Hosts of a type: a name counts cores on v5p, chips on v5e and v6e, of which up to 8 are one host.
hosts() {
    local number="${type##*-}" count=1
    case "$type" in
    v5p-*) count=$((number / 8)) ;;
    v5litepod-* | v6e-*) if [ "$number" -gt 8 ]; then count=$((number / 4)); fi ;;
    *) fail "--type=$type is not known; give v5p-N, v5litepod-N or v6e-N" ;;
    esac
    echo $((count > 0 ? count : 1))
}

image() {
    case "$type" in
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo v2-alpha-tpuv6e ;;
    esac
}

# there WORKER COMMAND: runs a shell command on a worker, or on all.
there() {
    run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

do_create() {
    need type
    hosts >/dev/null
    local more=()
    [ -z "$spot" ] || more+=(--spot)
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
        --accelerator-type="$type" --runtime-version="$(image)" "${more[@]}"
}

state() {
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format="value(state.state)"
}

do_wait() {
    if [ "$DRY_RUN" = yes ]; then state && return; fi
    local now=''
    while now="$(state)" && [ "$now" != ACTIVE ]; do
        echo "$(date +%H:%M:%S) $name is $now"
        case "$now" in FAILED | SUSPEND*) fail "delete it, and create it again" ;; esac
        sleep 30
    done
}

do_copy() {
    run git -C "$ROOT" archive --format=tar.gz --output="/tmp/$name.tar.gz" HEAD
    run gcloud compute tpus tpu-vm scp "/tmp/$name.tar.gz" "$name:hope_jax.tar.gz" "${where[@]}" --worker=all
}

do_install() {
    local command="mkdir -p hope_jax && tar -xzf hope_jax.tar.gz -C hope_jax"
    # The machine's own Python is 3.10.
    command+=" && python3 -m pip install --quiet --user uv && ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 venv"
    command+=" && ~/.local/bin/uv pip install --quiet --python venv/bin/python --editable './hope_jax[train,tpu,gcs]'"
    if [ -n "$mount" ]; then
        command+=" && sudo apt-get install --quiet --yes nfs-common && sudo mkdir -p /mnt/hope"
        command+=" && (mountpoint -q /mnt/hope || sudo mount -t nfs $(quoted "$mount") /mnt/hope) && sudo chmod a+rwx /mnt/hope"
    fi
    there all "$command"
}

do_run() {
    need type
    need_training
    local train
    train="../venv/bin/hope train $(quoted "${TRAIN[@]}" --config.mesh.processes="$(hosts)")"
    there all "cd hope_jax && rm -f ~/hope.code && { (trap '' HUP; $train; echo \$? > ~/hope.code) > ~/hope.log 2>&1 < /dev/null & }"
}

do_log() {
    there 0 "tail -n +1 -F ~/hope.log"
}

do_status() {
    state
    there 0 "cat ~/hope.code 2>/dev/null || pgrep -fa 'hope train' || echo 'there is no run'"
}

do_delete() {
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

begin() {
    do_create
    do_wait
    do_copy
    do_install
    do_run
}

do_keep() {
    begin
    local code='' now=''
    while :; do
        [ "$DRY_RUN" = yes ] || sleep 60
        code="$(there 0 "cat ~/hope.code 2>/dev/null || echo runs" || echo lost)"
        now="$(state || echo gone)"
        if [ "$DRY_RUN" = yes ]; then
            printf '%s\n' "$code" "$now"
            break
        fi
        case "$code" in
        runs) continue ;;
        0) break ;;
        2 | 3) fail "the run has ended with code $code; see the verb log" ;;
        esac
        if [ "$now" != ACTIVE ]; then # whatever the others have ended with
            echo "$(date +%H:%M:%S) $name is $now; asking again"
            do_delete || true
            begin
        elif [ "$code" != lost ]; then
            goes_on "$code" || fail "the run has failed with code $code; see the verb log"
            do_run
        fi
    done
    do_delete
}

for verb in "${VERBS[@]}"; do "do_$verb"; done
