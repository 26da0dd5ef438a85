"""A job as manifests for Kubernetes with KubeRay: a RayJob, the same behind a Kueue queue, a cluster that grows.

A RayJob is the unit: durability lies in our checkpoints, so a retry is a new cluster that goes on where the old one
stopped. Everything is safe by default; `lint.py` says what that means. Called by `targets.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import SpecError, explain
from orchestrator.spec import JobSpec, WorkersSpec
from orchestrator.specfile import dump_spec

__all__ = [
    "MOUNT",
    "Options",
    "config_map",
    "name_of",
    "network_policy",
    "pod_monitor",
    "ray_cluster",
    "ray_job",
    "volume",
]

LONGEST = 47  # characters of a RayJob's name: KubeRay adds to it for its pods
MOUNT = "/runs"
JOB = "/etc/rankfire/job.yaml"
USER = 10001
QUEUE = "kueue.x-k8s.io/queue-name"
RUN = "rankfire.dev/run"  # its value is a label, which not every run id is
SLACK = 30  # seconds of a pod's end that are not for saving

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a job file does not say, and a cluster must know.

    Args:
        image: with Rankfire and the program, by digest.
        ray: version of Ray in the image.
        name: of what is made; empty: from the run id.
        memory: of each rank's pod.
        grace: seconds in which a run that is stopped may save.
        retries: new clusters that are tried after one that failed.
        queue: of Kueue.
        storage_class: of the volume; empty: the cluster's default.
        size: of the volume.
    """

    image: str
    ray: str
    name: str = ""
    memory: str = "4Gi"
    grace: int = 300
    retries: int = 3
    queue: str = "rankfire"
    storage_class: str = ""
    size: str = "100Gi"


def name_of(run: str, options: Options) -> str:
    """The name of what is made for a run: a DNS label of at most 47 characters.

    Raises:
        SpecError: it can't be one.
    """
    name = options.name or re.sub(r"[^a-z0-9]+", "-", f"rankfire-{run}".lower()).strip("-")
    if re.fullmatch(rf"[a-z]([a-z0-9-]{{0,{LONGEST - 2}}}[a-z0-9])?", name):
        return name
    where, mend = "--name" if options.name else f"run {run!r}", "give a shorter one: --name digits"
    expected = f"a name of at most {LONGEST} lower-case letters, digits and '-', which begins with a letter"
    raise SpecError(explain(where, expected=expected, received=f"{name!r} ({len(name)} characters)", mend=mend))


def ray_job(spec: JobSpec, options: Options, *, kueue: bool = False) -> Manifest:
    """A RayJob: KubeRay makes a cluster, runs the job on it, and removes it."""
    metadata = _metadata(spec, options)
    if kueue:
        metadata["labels"] = {**metadata["labels"], QUEUE: options.queue}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": f"python -m orchestrator run {JOB}",
            "submissionMode": "K8sJobMode",
            "suspend": kueue,
            "backoffLimit": options.retries,
            "submitterConfig": {"backoffLimit": 3},
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "submitterPodTemplate": _submitter(spec, options),
            "rayClusterSpec": _cluster(spec, options, grows=False),
        },
    }


def ray_cluster(spec: JobSpec, options: Options) -> Manifest:
    """A cluster that stays, and grows and shrinks with what is submitted to it."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(spec, options),
        "spec": _cluster(spec, options, grows=True),
    }


def config_map(spec: JobSpec, options: Options) -> Manifest:
    """The job file, as the driver reads it."""
    storage = spec.storage if "://" in spec.storage else MOUNT
    there = spec.model_copy(update={"storage": storage, "cluster": spec.cluster.model_copy(update={"address": None})})
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(spec, options),
        "data": {"job.yaml": dump_spec(there)},
    }


def volume(spec: JobSpec, options: Options) -> Manifest:
    """The volume in which runs have their folders: all ranks write it."""
    claim: Manifest = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": options.size}}}
    if options.storage_class:
        claim["storageClassName"] = options.storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": _metadata(spec, options), "spec": claim}


def network_policy(spec: JobSpec, options: Options) -> Manifest:
    """Who may talk to a run's pods: they themselves, the operator, who reads metrics; nobody else."""
    own = {"podSelector": {"matchLabels": {RUN: name_of(spec.run, options)}}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    metrics = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(spec, options),
        "spec": {
            "podSelector": {"matchLabels": {RUN: name_of(spec.run, options)}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [own]},
                {"from": [operator], "ports": [{"protocol": "TCP", "port": 8265}]},
                {"from": [metrics], "ports": [{"protocol": "TCP", "port": 8080}]},
            ],
            "egress": [
                {"to": [own]},
                {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
                {"ports": [{"protocol": "TCP", "port": 443}]},
            ],
        },
    }


def pod_monitor(spec: JobSpec, options: Options) -> Manifest:
    """Where Prometheus finds a run's metrics."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(spec, options),
        "spec": {
            "selector": {"matchLabels": {RUN: name_of(spec.run, options)}},
            "podMetricsEndpoints": [{"port": "metrics", "interval": "15s"}],
        },
    }


# -------------------------------------------------------------------- within
def _metadata(spec: JobSpec, options: Options) -> Manifest:
    labels = {"app.kubernetes.io/name": "rankfire", RUN: name_of(spec.run, options)}
    return {"name": name_of(spec.run, options), "labels": labels}


def _cluster(spec: JobSpec, options: Options, *, grows: bool) -> Manifest:
    cluster: Manifest = {
        "rayVersion": options.ray,
        "authOptions": {"mode": "token"},  # without the word, KubeRay makes a secret and asks nobody for it
        "enableInTreeAutoscaling": grows,
    }
    if grows:
        cluster["autoscalerOptions"] = {"version": "v2", "idleTimeoutSeconds": 300}
    head = _pod(spec, options, "ray-head", {"cpu": "1", "memory": options.memory}, account=grows)
    cluster["headGroupSpec"] = {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # pods reach it; the policy says which
        "template": head,
    }
    cluster["workerGroupSpecs"] = [_ranks(spec, options, grows=grows)]
    return cluster


def _ranks(spec: JobSpec, options: Options, *, grows: bool) -> Manifest:
    workers = spec.workers
    count = workers.count + workers.spares
    least = 0 if grows else count
    most = (workers.max or workers.count) + workers.spares if grows else count
    return {
        "groupName": "ranks",
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": max(most, 1),
        "rayStartParams": {},
        "template": _pod(spec, options, "ray-worker", _resources(workers, options)),
    }


def _resources(workers: WorkersSpec, options: Options) -> dict[str, str]:
    amounts = {"cpu": str(max(1, math.ceil(workers.cpus))), "memory": options.memory}
    return amounts | ({"nvidia.com/gpu": str(math.ceil(workers.gpus))} if workers.gpus else {})


def _pod(
    spec: JobSpec, options: Options, container: str, amounts: dict[str, str], *, account: bool = False
) -> Manifest:
    stop = ["python", "-m", "orchestrator", "stop", spec.run, "--storage", _storage_there(spec)]
    pod: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": account,  # the autoscaler, beside the head, asks the API for pods
        "terminationGracePeriodSeconds": options.grace + SLACK,
        "securityContext": _pod_security(),
        "containers": [
            {
                "name": container,
                "image": options.image,
                "env": [{"name": name, "value": value} for name, value in _environment(options).items()],
                "resources": {"limits": amounts, "requests": dict(amounts)},
                "securityContext": _container_security(),
                "lifecycle": {"preStop": {"exec": {"command": [*stop, "--timeout", str(options.grace)]}}},
                "volumeMounts": [
                    {"name": "job", "mountPath": JOB.rpartition("/")[0], "readOnly": True},
                    *([{"name": "runs", "mountPath": MOUNT}] if "://" not in spec.storage else []),
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
            }
        ],
        "volumes": _volumes(spec, options),
    }
    if "nvidia.com/gpu" in amounts:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    labels = {"app.kubernetes.io/name": "rankfire", RUN: name_of(spec.run, options)}
    return {"metadata": {"labels": labels}, "spec": pod}


def _submitter(spec: JobSpec, options: Options) -> Manifest:
    amounts = {"cpu": "500m", "memory": "512Mi"}
    container = {
        "name": "ray-job-submitter",
        "image": options.image,
        "resources": {"limits": amounts, "requests": dict(amounts)},
        "securityContext": _container_security(),
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": _pod_security(),
        "containers": [container],
    }
    labels = {"app.kubernetes.io/name": "rankfire", RUN: name_of(spec.run, options)}
    return {"metadata": {"labels": labels}, "spec": pod}


def _volumes(spec: JobSpec, options: Options) -> list[Manifest]:
    name = name_of(spec.run, options)
    volumes: list[Manifest] = [{"name": "job", "configMap": {"name": name}}, {"name": "tmp", "emptyDir": {}}]
    if "://" not in spec.storage:
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": name}})
    return volumes


def _environment(options: Options) -> dict[str, str]:
    return {
        "HOME": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(options.grace),  # Ray's own is 3 s, in which nothing is saved
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _pod_security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _storage_there(spec: JobSpec) -> str:
    return spec.storage if "://" in spec.storage else MOUNT
