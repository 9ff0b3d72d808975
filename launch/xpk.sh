#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster, by XPK (pip install xpk) and the image of launch/Dockerfile.
#
#   bash launch/xpk.sh --name=hope --cluster=CLUSTER --zone=us-east5-a --project=PROJECT \
#       --image=us-docker.pkg.dev/PROJECT/hope/hope:1 --type=v5p-8 image run log -- \
#       --config=experiments/language_model.py:hope-60m --workdir=gs://BUCKET/60m
#
# Verbs, in the order given:
#   image    builds the image of this checkout, and pushes it
#   run      hope train with what stands behind --, on all hosts of a slice
#   log      follows what the first host prints
#   status   of the cluster's workloads
#   delete   the workload
# Flags:
#   --name=NAME --cluster=CLUSTER --zone=ZONE --project=PROJECT   of the workload
#   --type=TYPE      such as v5p-8 (4 chips), v5litepod-16, v6e-8
#   --hosts=NUMBER   of machines that the type has (1 if not given)
#   --image=IMAGE    its name in a registry that the cluster can read
#   --spot           where the cluster makes machines as it needs them
#   --restarts=100   how often it may begin again: after a preemption, or as launch/exit_codes.sh says
#   --dry-run        shows the commands, and runs none
# The run lies in a bucket, or in a folder that all hosts see (xpk storage attach).
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
name='' cluster='' zone='' project='' type='' hosts=1 image='' spot='' restarts=100
read_flags "name cluster zone project type hosts image spot restarts" "image run log status delete" "$@"
need name cluster zone project
[ ${#VERBS[@]} -gt 0 ] || fail "nothing to do; see --help"
where=(--cluster="$cluster" --zone="$zone" --project="$project")

do_image() {
    need image
    run docker build --file="$ROOT/launch/Dockerfile" --build-arg=EXTRA=tpu,gcs --tag="$image" "$ROOT"
    run docker push "$image"
}

do_run() {
    need image type
    need_training
    local more=()
    [ -z "$spot" ] || more+=(--spot)
    run xpk workload create --workload="$name" "${where[@]}" --tpu-type="$type" \
        --docker-image="$image" --max-restarts="$restarts" --restart-on-exit-codes="${RESTART// /,}" \
        --termination-grace-period-seconds=300 "${more[@]}" \
        --command="$(quoted hope train "${TRAIN[@]}" --config.mesh.processes="$hosts")"
}

do_log() {
    run kubectl logs --follow \
        --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" --container=jax-tpu
}

do_status() {
    run xpk workload list "${where[@]}"
}

do_delete() {
    run xpk workload delete --workload="$name" "${where[@]}"
}

for verb in "${VERBS[@]}"; do "do_$verb"; done
