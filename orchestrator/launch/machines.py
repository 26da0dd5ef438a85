"""A cluster for a job on rented or own machines: files for `ray up`, and for docker compose on one machine.

All ask for a token, and open nothing to others but ssh. Called by `targets.py`.
"""

from __future__ import annotations

import math
from typing import Any

from orchestrator.launch.kubernetes import USER, Options
from orchestrator.spec import JobSpec

__all__ = ["compose", "ray_up"]

TOKEN = "~/.ray/auth_token"
BOOT = "~/ray_bootstrap_config.yaml"
START = "ray start {} --disable-usage-stats --object-manager-port=8076"


def ray_up(spec: JobSpec, options: Options, provider: str) -> dict[str, Any]:
    """A cluster file for `ray up`.

    Args:
        spec: the job.
        options: its image and version of Ray.
        provider: aws, gcp, or local for machines of one's own.
    """
    user = "ubuntu" if provider != "local" else "ray"
    prepare = [
        "echo 'export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0' >> ~/.bashrc",
        "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token",
    ]
    cluster: dict[str, Any] = {
        "cluster_name": f"rankfire-{spec.run}".replace("_", "-").replace(".", "-").lower(),
        "auth": {"ssh_user": user},
        "file_mounts": {f"/home/{user}/.ray/auth_token": TOKEN},  # make one: ray get-auth-token --generate
        "initialization_commands": prepare,
        "setup_commands": [f"pip install 'ray[default]=={options.ray}' rankfire"],
        # Not Ray's own, which begin with `ulimit -c unlimited`: a core dump holds the model, and what was secret.
        "head_start_ray_commands": [
            "ray stop",
            START.format(
                "--head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml"
            ),
        ],
        "worker_start_ray_commands": ["ray stop", START.format("--address=$RAY_HEAD_IP:6379")],
    }
    if provider == "local":
        machines = [f"10.0.0.{2 + number}" for number in range(max(1, spec.workers.count))]
        cluster["provider"] = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": machines}
        cluster["auth"]["ssh_private_key"] = "~/.ssh/id_ed25519"
        return cluster
    cluster |= _rented(spec, provider)
    return cluster


def _rented(spec: JobSpec, provider: str) -> dict[str, Any]:
    workers = spec.workers
    most = (workers.max or workers.count) + workers.spares
    amounts: dict[str, float] = {"CPU": max(1, math.ceil(workers.cpus))}
    if workers.gpus:
        amounts["GPU"] = math.ceil(workers.gpus)
    head, rank = _nodes(provider, gpu=bool(workers.gpus))
    where = {"region": "us-west-2"} if provider == "aws" else {"region": "us-west1", "availability_zone": "us-west1-a"}
    given: dict[str, Any] = {"type": provider, **where}
    if provider == "aws":
        ssh = {"FromPort": 22, "ToPort": 22, "IpProtocol": "TCP", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}
        given["security_group"] = {"GroupName": "rankfire", "IpPermissions": [ssh]}
    else:
        given["project_id"] = "my-project"
    return {
        "provider": given,
        "max_workers": most,
        "idle_timeout_minutes": 10,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": head, "max_workers": 0},
            "rank": {"resources": amounts, "node_config": rank, "min_workers": 0, "max_workers": most},
        },
    }


def _nodes(provider: str, *, gpu: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    if provider == "aws":
        private = {"MetadataOptions": {"HttpTokens": "required"}}
        return {"InstanceType": "m6i.xlarge", **private}, {
            "InstanceType": "g6.2xlarge" if gpu else "m6i.2xlarge",
            **private,
        }
    image = "projects/deeplearning-platform-release/global/images/family/common-cpu"
    disk = {"boot": True, "autoDelete": True, "initializeParams": {"diskSizeGb": 100, "sourceImage": image}}
    head: dict[str, Any] = {"machineType": "n2-standard-4", "disks": [disk]}
    rank: dict[str, Any] = {"machineType": "g2-standard-8" if gpu else "n2-standard-8", "disks": [disk]}
    return head, rank


def compose(spec: JobSpec, options: Options) -> dict[str, Any]:
    """Several Ray nodes on one machine, for docker compose; only this machine reaches their dashboard."""
    ranks = max(1, spec.workers.count + spec.workers.spares)
    head = ["ray", "start", "--head", "--block", "--port=6379", "--num-cpus=0", "--dashboard-host=0.0.0.0"]
    node = ["ray", "start", "--block", "--address=head:6379", f"--num-cpus={max(1, math.ceil(spec.workers.cpus))}"]
    health = {
        "test": ["CMD", "ray", "health-check", "--address", "head:6379"],
        "interval": "5s", "timeout": "10s", "retries": 30,
    }  # fmt: skip
    waits = {"head": {"condition": "service_healthy"}}
    return {
        "name": f"rankfire-{spec.run}".lower().replace(".", "-"),
        "services": {
            "head": {**_service(options, head), "ports": ["127.0.0.1:8265:8265"], "healthcheck": health},
            "rank": {**_service(options, node), "deploy": {"replicas": ranks}, "depends_on": waits},
        },
        "volumes": {"runs": {}},
        "secrets": {"ray_token": {"file": "./ray_token"}},
    }


def _service(options: Options, command: list[str]) -> dict[str, Any]:
    return {
        "image": options.image,
        "command": command,
        "init": True,
        "user": f"{USER}:{USER}",
        "shm_size": "1g",
        "mem_limit": options.memory.replace("Gi", "g"),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "tmpfs": ["/tmp"],
        "environment": {
            "HOME": "/tmp",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray_token",
            "RAY_JOB_STOP_WAIT_TIME_S": str(options.grace),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        "secrets": ["ray_token"],
        "volumes": ["runs:/runs"],
        "stop_grace_period": f"{options.grace}s",
    }
