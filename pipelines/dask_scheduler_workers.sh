#!/usr/bin/env bash
# A Dask scheduler with workers on this machine, and a command that uses them; both end with it.
#   dask_scheduler_workers.sh volflow run segment.yaml --set input=scan.nii.gz --set output=p01
# Without a command they wait, and the address is printed, for --cluster ADDRESS elsewhere.
#
# Who reaches a scheduler can run code on its workers: the address is loopback unless HOST says
# otherwise. Beyond one machine use TLS (https://distributed.dask.org/en/stable/tls.html), and start
# `dask worker "$address"` on each machine.

set -euo pipefail
host=${HOST:-127.0.0.1}    # where the scheduler listens
port=${PORT:-0}            # 0: any that is free
workers=${WORKERS:-2}      # processes of one thread; volflow computes one block at a time in each
memory=${MEMORY:-4GiB}     # a worker above it is restarted; volflow plans with 60 % of it

folder=$(mktemp -d)
started=()
finish() {                 # in the reverse order: the command, the workers, the scheduler
    for ((n = ${#started[@]} - 1; n >= 0; n--)); do
        kill "${started[n]}" 2>/dev/null || true
        wait "${started[n]}" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 1' INT TERM

dask scheduler --host "$host" --port "$port" --no-dashboard --dashboard-address "$host:0" \
    --scheduler-file "$folder/scheduler.json" &
started+=($!)
until [ -s "$folder/scheduler.json" ]; do
    kill -0 "${started[0]}" 2>/dev/null || { echo "the scheduler did not start" >&2; exit 1; }
    sleep 0.2
done
address=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' \
    "$folder/scheduler.json")
dask worker "$address" --host "$host" --nworkers "$workers" --nthreads 1 \
    --memory-limit "$memory" --local-directory "$folder" \
    --no-dashboard --dashboard-address "$host:0" &
started+=($!)

if [ $# -eq 0 ]; then
    echo "scheduler at $address; use --cluster $address, Ctrl-C ends it"
    wait
else
    "$@" --cluster "$address" &
    started+=($!)
    code=0
    wait $! || code=$?
    exit "$code"
fi
