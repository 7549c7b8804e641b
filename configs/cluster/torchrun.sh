#!/usr/bin/env bash
# Train on several machines with torchrun: the same line on each of them.
#
#   NODES=2 HEAD=first-machine:29500 configs/cluster/torchrun.sh -c configs/lanes.yaml --swa=true
#
# Arguments are those of `lightning-robust fit`. On one machine leave NODES and HEAD out.
#   NODES      how many machines; 1 by default
#   HEAD       host:port of one of them, reachable from all
#   PROCESSES  processes on each machine; by default one a GPU. To be given on machines without
#   STRATEGY   Lightning's; ddp by default
#   RUN        name of the run, where several share HEAD
set -euo pipefail

nodes=${NODES:-1}
processes=${PROCESSES:-auto}
if [ "$nodes" = 1 ] && [ -z "${HEAD:-}" ]; then
    meeting=(--standalone)
else
    meeting=(--rdzv-backend=c10d --rdzv-endpoint="${HEAD:?name host:port of one machine}" --rdzv-id="${RUN:-lightning_robust}")
fi
exec python -m torch.distributed.run --nnodes="$nodes" --nproc-per-node="$processes" "${meeting[@]}" \
    -m lightning_robust fit "$@" \
    --trainer.strategy="${STRATEGY:-ddp}" --trainer.num_nodes="$nodes" --trainer.devices="$processes"
