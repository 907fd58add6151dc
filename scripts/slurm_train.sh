#!/bin/bash
#SBATCH --job-name=gptmini
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#
# Train on several machines: sbatch scripts/slurm_train.sh CONFIG.yaml [--section.key VALUE ...]
#
# One torchrun on each node starts one process for each GPU, or on nodes without GPUs a single one; they meet
# at the first node. A process that dies or hangs ends this attempt on all nodes, and torchrun starts the next
# one, at most RESTARTS times; each resumes from the last checkpoint (--resume). Two minutes before the time is
# up Slurm sends SIGTERM: the run saves and stops. The run folder (train.out_dir) and the cache of prepared
# text (GPTMINI_CACHE_DIR) must lie on a file system that all nodes see.
set -euo pipefail

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=${SLURM_GPUS_ON_NODE:-1}

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "$processes" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$first_node:29500" \
    --max-restarts "${RESTARTS:-3}" \
    --shutdown-timeout 110 \
    scripts/train.py "$@" --resume
