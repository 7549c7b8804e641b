#!/usr/bin/env bash
# Train on several machines under SLURM, one task a GPU:
#
#   sbatch configs/cluster/slurm.sh -c configs/lanes.yaml --swa=true
#
# Arguments are those of `lightning-robust fit`; the paths must be on a file system that all machines share.
# Lightning reads ranks and addresses from SLURM. 90 s before the time limit SLURM signals, Lightning writes a
# checkpoint and requeues the job, which goes on from it.
#SBATCH --job-name=lightning_robust
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
set -euo pipefail

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" python -m lightning_robust fit "$@" \
    --trainer.strategy="${STRATEGY:-ddp}" \
    --trainer.num_nodes="$SLURM_NNODES" \
    --trainer.devices="$SLURM_NTASKS_PER_NODE"
