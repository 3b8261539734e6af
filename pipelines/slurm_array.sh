#!/usr/bin/env bash
# A pipeline over many scans, one each in a SLURM job array, safe at its walltime as slurm_batch.sh.
#   ls /data/in/*.nii.gz > scans.txt
#   sbatch --array="1-$(wc -l < scans.txt)%8" slurm_array.sh segment.yaml scans.txt /data/out
# Results are named by their scans. Submitted again, jobs whose scan is done and unchanged end at
# once; %8 is how many run at a time.
#SBATCH --job-name=volflow
#SBATCH --output=volflow-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=02:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue

set -euo pipefail
pipeline=$1 scans=$2 out=$3

scan=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$scans")
[ -n "$scan" ] || { echo "$scans has no line $SLURM_ARRAY_TASK_ID" >&2; exit 2; }
name=$(basename "$scan")
name=${name%.gz}
name=${name%.nii}

volflow run "$pipeline" --set "input=$scan" --set "output=$out/$name" &
running=$!
out_of_time=no
trap 'out_of_time=yes; kill -TERM "$running" || true' TERM

code=0
wait "$running" || code=$?
if [ "$out_of_time" = yes ]; then
    code=0
    wait "$running" || code=$?
    if [ "$code" -ne 0 ]; then
        scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    fi
fi
exit "$code"
