#!/bin/bash
# One run on every host of a Cloud TPU slice; the hosts find each other by the slice's own metadata.
#
#   TPU_NAME=my-slice ZONE=us-east5-a CONFIG=configs/quickstart.yaml scripts/launch/tpu_pod.sh [key=value ...]
#
# Every host needs the package at the same place and one output_dir that all of them see (Filestore, a mounted bucket).
# A host runs it as a systemd unit: before maintenance or preemption systemd sends SIGTERM, and the run saves a
# checkpoint and ends with status 143. Interrupting this script does the same on all hosts. The same command continues,
# and this script gives it itself, up to RESTARTS times, unless it was interrupted or the run says why it cannot go on.
#
# Dry run, on any machine: DRY_RUN=1 TPU_NAME=... ZONE=... CONFIG=... scripts/launch/tpu_pod.sh [key=value ...]
set -euo pipefail

: "${TPU_NAME:?name of the TPU VM}" "${ZONE:?its zone}" "${CONFIG:?the YAML file of the run, as the hosts see it}"
: "${WORKDIR:=jaxdistill}"                   # on the hosts: the directory to run in, from the home directory
: "${JAXDISTILL:=.venv/bin/jaxdistill}"      # the command, from there
: "${RESTARTS:=10}" "${RESTART_SECONDS:=60}" # a host may take minutes to come back
: "${GRACE_SECONDS:=300}"                    # how long a host may take to save before it is killed

unit=jaxdistill
printf -v run '%q ' "$JAXDISTILL" run "$CONFIG" "$@"
# `exec`: the signal goes to the unit's first process, which must be the run
printf -v script 'cd %q && exec %s>> jaxdistill.log 2>&1' "$WORKDIR" "$run"
# mixed: only the run itself gets the signal, not the data workers it still needs
printf -v start 'sudo systemd-run --unit=%q --wait --collect --uid=$(id -u) --working-directory=$HOME %s bash -c %q' \
    "$unit" "--property=KillMode=mixed --property=TimeoutStopSec=$GRACE_SECONDS" "$script"
if [[ -n ${DRY_RUN:-} ]]; then
    printf 'every host of %s (%s): %s\n' "$TPU_NAME" "$ZONE" "$start"
    exit
fi

on_every_host() {
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"
}

interrupted=
trap 'interrupted=1; on_every_host "sudo systemctl stop $unit" || true' TERM INT

echo "log, on every host: $WORKDIR/jaxdistill.log"
for ((attempt = 0; ; attempt++)); do
    status=0
    on_every_host "$start" &
    wait $! || status=$?
    if [[ -n $interrupted ]]; then
        wait
        exit 143
    fi
    # 0: done; 2: the settings or data are wrong; 3: diverged. Anything else may be a host that was taken away
    if [[ $status =~ ^[023]$ ]] || ((attempt >= RESTARTS)); then
        exit "$status"
    fi
    echo "a host ended with status $status: the same command continues in $RESTART_SECONDS s"
    sleep "$RESTART_SECONDS" &
    wait $! || true
    [[ -z $interrupted ]] || exit 143
done
