#!/bin/bash
# Calibrate on 16 nodes, then merge: sbatch slurm-array.sh
#
# Each array task runs one shard. A task that is killed (time limit, preemption) continues from its
# checkpoint when it is started again: sbatch --array=7 slurm-array.sh
#
# MODEL, TEXT and PARTS must be on a file system that all nodes see.

#SBATCH --job-name=ggprune
#SBATCH --array=1-16
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
# SIGTERM a minute before the end: ggprune keeps what it gathered.
#SBATCH --signal=B:TERM@60

set -euo pipefail

: "${MODEL:?the GGUF file}" "${PARTS:?a folder for the parts}" "${STATS:?the merged file}"
TEXT=${TEXT:-}         # for instance: code=/data/code.jsonl math=/data/math.jsonl
OPTIONS=${OPTIONS:-}   # of ggprune calibrate, for instance: --cpu-moe --ctx 4096
SHARDS=${SLURM_ARRAY_TASK_COUNT:-16}
NUMBER=${SLURM_ARRAY_TASK_ID:-1}

mkdir -p "$PARTS"
part=$PARTS/part-$(printf %04d "$NUMBER").gguf
texts=()
for text in $TEXT; do texts+=(--text "$text"); done

if [ ! -e "$part" ]; then
    ggprune calibrate "$MODEL" -o "$part" --shard "$NUMBER/$SHARDS" \
        "${texts[@]}" --threads "${SLURM_CPUS_PER_TASK:-8}" $OPTIONS &
    child=$!
    trap 'kill -TERM "$child"; wait "$child"' TERM
    wait "$child"
fi

# Whoever finishes last merges. With a job of its own instead:
#   sbatch --dependency=afterok:JOB --wrap 'ggprune merge PARTS/part-*.gguf -o STATS'
(
    flock 9
    finished=("$PARTS"/part-*.gguf)
    if [ "${#finished[@]}" -eq "$SHARDS" ] && [ ! -e "$STATS" ]; then
        ggprune merge "${finished[@]}" -o "$STATS"
    fi
) 9> "$PARTS/.lock"
