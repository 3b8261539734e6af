#!/usr/bin/env bash
# One pipeline as a SLURM job that outlives its walltime. Copy it, change it, and submit it:
#   sbatch slurm_batch.sh segment.yaml --set input=scan.nii.gz --set output=results/p01
# A minute before the end volflow is told to stop; it keeps what is done, the job queues itself
# again, and the same command goes on there. A failure is not queued again.
#SBATCH --job-name=volflow
#SBATCH --output=volflow-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue

set -euo pipefail

volflow run "$@" &
running=$!
out_of_time=no
trap 'out_of_time=yes; kill -TERM "$running" || true' TERM

# The signal ends the first wait; the second one waits for volflow to put its things in order.
code=0
wait "$running" || code=$?
if [ "$out_of_time" = yes ]; then
    code=0
    wait "$running" || code=$?
    if [ "$code" -ne 0 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
