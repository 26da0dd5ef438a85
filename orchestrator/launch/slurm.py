"""A job as a batch script for Slurm: Ray on all its nodes, the driver in the batch shell, saved and requeued in time.

Steps are started and ended by their process ids, so that jobs of others on the same node are left alone. Called by
`targets.py`; `deploy/slurm` has the digits job's.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from orchestrator.spec import JobSpec

__all__ = ["batch_script"]

HEADER = """\
#!/bin/bash
# Rendered by `rankfire render slurm`: run {run} on {nodes} node(s). Submit it from the project's folder: sbatch FILE
#SBATCH --job-name={name}
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --requeue
#SBATCH --signal=B:USR1@{warning}
"""
BODY = r"""
set -u
umask 077
cd "$SLURM_SUBMIT_DIR" || exit 1
PYTHON=${RANKFIRE_PYTHON:-python}                       # the interpreter that has Rankfire, on every node
RAY=${RANKFIRE_RAY:-$(dirname "$(command -v "$PYTHON")")/ray}
say() { echo "$(date +%FT%T) rankfire[try ${SLURM_RESTART_COUNT:-0}]: $*"; }

# A token of this job's own: Ray clusters without one let everybody in.
private=$SLURM_SUBMIT_DIR/.rankfire-$SLURM_JOB_ID
mkdir -p -m 0700 "$private" || exit 1
"$PYTHON" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$private/token" || exit 1
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token
export RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=2
temporary=$(mktemp -d /tmp/rf-XXXXXX) || exit 1         # short: Ray's sockets below it may have 107 bytes

driver= steps= again=
# Only this shell gets USR1, so many seconds before the time limit or a preemption: the run saves, then is requeued.
on_warning() {
  say "asked to make room: the run saves and is requeued"
  again=1
  [ -z "$driver" ] || kill -TERM "$driver"
}
# TERM comes to all processes of the job (requeue, scancel): the driver has heard it itself.
trap on_warning USR1
trap 'say "asked to end"' TERM

end_ray() {
  [ -z "$steps" ] || kill -TERM $steps 2> /dev/null
  [ -z "$steps" ] || wait $steps 2> /dev/null
  rm -rf "$temporary" "$private"
}
trap end_ray EXIT

# Every port follows from the job's number, so that two jobs may share a node.
port=$((20000 + SLURM_JOB_ID % 10000 * 4))
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
start_ray() { # NODE OPTIONS…
  local node=$1
  shift
  srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap --kill-on-bad-exit=1 "$RAY" start --block \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats \
    --dashboard-agent-listen-port=$((port + 1)) "$@" > "$temporary/$node.log" 2>&1 &
  steps="$steps $!"
}
start_ray "${nodes[0]}" --head --port="$port" --include-dashboard=false --ray-client-server-port=$((port + 2)) \
  --temp-dir="$temporary/ray"
for _ in $(seq 600); do [ -s "$temporary/ray/ray_current_cluster" ] && break; sleep 0.2; done
if ! RAY_ADDRESS=$(cat "$temporary/ray/ray_current_cluster"); then
  say "Ray's head did not start"; tail -n 20 "$temporary"/*.log; exit 3
fi
export RAY_ADDRESS
for node in "${nodes[@]:1}"; do start_ray "$node" --address="$RAY_ADDRESS"; done
say "Ray at $RAY_ADDRESS on ${nodes[*]}"

"$PYTHON" -m orchestrator run @ARGUMENTS@ &
driver=$!
# A trap runs only between commands, so this waits again until the driver is gone.
while :; do wait "$driver"; code=$?; kill -0 "$driver" 2> /dev/null || break; done
say "the run ended with exit code $code"
if [ -n "$again" ] && [ "$code" -ne 0 ]; then
  end_ray
  trap '' TERM                                          # which requeueing sends to this very shell
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
"""


def batch_script(spec: JobSpec, job: str, *, sets: Sequence[str] = (), nodes: int = 1, grace: int = 300) -> str:
    """The script that runs a job file under Slurm.

    Args:
        spec: the job.
        job: path of its file, from the project's folder.
        sets: overrides, as given to --set.
        nodes: how many the ranks are laid over.
        grace: seconds in which a run that is stopped may save.
    """
    ranks = math.ceil((spec.workers.count + spec.workers.spares) / nodes)
    cpus = max(1, math.ceil(ranks * spec.workers.cpus))
    gpus = math.ceil(ranks * spec.workers.gpus)
    given = [word for override in sets for word in ("--set", override)]
    if nodes > 1:  # the driver waits for nodes that are still starting
        given += ["--set", "cluster.autoscale=true", "--set", f"cluster.start_timeout={max(grace, 300)}"]
    header = HEADER.format(
        run=spec.run,
        name=f"rankfire-{spec.run}",
        nodes=nodes,
        cpus=cpus,
        gpus=f"#SBATCH --gpus-per-node={gpus}\n" if gpus else "",
        warning=grace + 60,
    )
    return header + BODY.replace("@ARGUMENTS@", shlex.join([job, *given]))
