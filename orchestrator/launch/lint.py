"""What a manifest must be to be safe and to keep what it promises: rules over plain values, each with its own sentence.

Some are KubeRay's own, which its operator would refuse only when the job is there; the others are ours. Rules for
RayJob and RayCluster, NetworkPolicy, volumes, and compose files. Called by `rankfire render`, and by tests that break
manifests to see each rule at work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from workers.redaction import sounds_secret

__all__ = ["compose_problems", "manifest_problems"]

DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
NAME = re.compile(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?")
QUEUE = "kueue.x-k8s.io/queue-name"
OLDEST = (2, 52)  # of Ray, that knows tokens


def manifest_problems(manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with one manifest, in words; empty: nothing."""
    rules = {
        "RayJob": _ray_job,
        "RayCluster": lambda found: _cluster(found.get("spec", {})),
        "NetworkPolicy": _network_policy,
        "PersistentVolumeClaim": _volume,
        "Service": _service,
    }
    rule = rules.get(str(manifest.get("kind")))
    problems = [] if rule is None else list(rule(manifest))
    name = str(manifest.get("metadata", {}).get("name", ""))
    if not NAME.fullmatch(name):
        problems.append(f"metadata.name: expected a DNS label of at most 47 characters, received {name!r}")
    return problems


def compose_problems(compose: Mapping[str, Any]) -> list[str]:
    """What is wrong with a compose file, in words."""
    return [
        f"services.{name}.{problem}"
        for name, service in compose.get("services", {}).items()
        for problem in _service_of_compose(service)
    ]


# -------------------------------------------------------------------- KubeRay
def _ray_job(manifest: Mapping[str, Any]) -> Iterator[str]:
    spec = manifest.get("spec", {})
    shuts = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not shuts:
        yield "suspend: needs shutdownAfterJobFinishes: true"
    if spec.get("ttlSecondsAfterFinished") and not shuts:
        yield "ttlSecondsAfterFinished: needs shutdownAfterJobFinishes: true"
    if spec.get("deletionStrategy") and (shuts or spec.get("ttlSecondsAfterFinished")):
        yield "deletionStrategy: not beside shutdownAfterJobFinishes and ttlSecondsAfterFinished"
    if spec.get("clusterSelector") and (spec.get("backoffLimit") or spec.get("suspend")):
        yield "clusterSelector: not beside backoffLimit and suspend"
    yield from _ours(spec)
    if QUEUE in manifest.get("metadata", {}).get("labels", {}) and not (spec.get("suspend") and shuts):
        yield "suspend: expected true where Kueue admits the job"
    yield from _cluster(spec.get("rayClusterSpec", {}))
    if (template := spec.get("submitterPodTemplate")) is not None:
        yield from _pod("submitterPodTemplate", template, saves=False)


def _ours(spec: Mapping[str, Any]) -> Iterator[str]:
    """Fields that KubeRay takes, and with which a training is lost or a secret told."""
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode != "K8sJobMode":
        yield f"submissionMode: expected K8sJobMode, received {mode}: others lose the job with their submitter"
    if spec.get("activeDeadlineSeconds"):
        yield "activeDeadlineSeconds: ends a training that could go on, and is not retried; leave it out"
    if spec.get("entrypointNumCpus") or spec.get("entrypointNumGpus"):
        yield "entrypointNumCpus: moves the driver to a worker, whose loss would end the run; leave it out"
    if spec.get("runtimeEnvYAML"):
        yield "runtimeEnvYAML: lands in a command line that others can read; bake code into the image"


def _cluster(spec: Mapping[str, Any]) -> Iterator[str]:
    version = str(spec.get("rayVersion", ""))
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode: expected token, written out: without the word everybody is let in"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) < 2 or numbers < OLDEST:
        yield f"rayVersion: expected 2.52 or newer, which knows tokens, received {version!r}"
    head = spec.get("headGroupSpec", {})
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield "headGroupSpec.rayStartParams.num-cpus: expected '0': a rank beside the driver may take it along"
    yield from _pod("headGroupSpec", head.get("template", {}), saves=True)
    for group in spec.get("workerGroupSpecs", []):
        yield from _group(group, grows=bool(spec.get("enableInTreeAutoscaling")))


def _group(group: Mapping[str, Any], *, grows: bool) -> Iterator[str]:
    where = f"workerGroupSpecs.{group.get('groupName', '?')}"
    least, count, most = (group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas"))
    if not least <= count <= most:
        yield f"{where}.replicas: expected minReplicas <= replicas <= maxReplicas, received {least}, {count}, {most}"
    if not grows and least != most:
        yield f"{where}.maxReplicas: expected as many as minReplicas, since nothing makes the cluster grow"
    parameters = group.get("rayStartParams", {})
    if any(not isinstance(value, str) for value in parameters.values()):
        yield f"{where}.rayStartParams: expected texts, as in '1'"
    if group.get("resources") and parameters.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
        yield f"{where}.rayStartParams: not beside resources"
    yield from _pod(where, group.get("template", {}), saves=True)


# -------------------------------------------------------------------- pods
def _pod(where: str, template: Mapping[str, Any], *, saves: bool) -> Iterator[str]:
    pod = template.get("spec", {})
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield f"{where}: securityContext: expected runAsNonRoot: true and a user by number"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{where}: securityContext.seccompProfile: expected RuntimeDefault"
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield f"{where}: expected no namespace of the host"
    if pod.get("restartPolicy") != "Never":
        yield f"{where}: restartPolicy: expected Never: who replaces a lost rank is decided by the run"
    if any("hostPath" in volume for volume in pod.get("volumes", [])):
        yield f"{where}: volumes: expected none of the host's"
    for container in pod.get("containers", []):
        yield from _container(where, container)
        yield from _saves(where, pod, container) if saves else ()


def _container(where: str, container: Mapping[str, Any]) -> Iterator[str]:
    security = container.get("securityContext", {})
    if not DIGEST.fullmatch(str(container.get("image", ""))):
        yield f"{where}: image: expected one by digest (…@sha256:…), received {container.get('image')!r}"
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield f"{where}: securityContext.allowPrivilegeEscalation: expected false"
    if "ALL" not in security.get("capabilities", {}).get("drop", []):
        yield f"{where}: securityContext.capabilities.drop: expected ALL"
    limits = container.get("resources", {}).get("limits", {})
    if not {"cpu", "memory"} <= limits.keys():
        yield f"{where}: resources.limits: expected cpu and memory: Ray takes a node's size from them"
    if limits != container.get("resources", {}).get("requests", {}):
        yield f"{where}: resources.requests: expected the same as limits"
    for variable in container.get("env", []):
        if sounds_secret(str(variable.get("name"))) and "value" in variable:
            yield f"{where}: env.{variable['name']}: expected valueFrom.secretKeyRef, received the secret itself"


def _saves(where: str, pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    """A pod that is taken away must have time to save: nothing else tells the run."""
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    if "stop" not in command or "--timeout" not in command:
        yield f"{where}: lifecycle.preStop: expected rankfire stop … --timeout SECONDS, since Kueue sends no signal"
        return
    budget = int(command[command.index("--timeout") + 1])
    if pod.get("terminationGracePeriodSeconds", 30) <= budget:
        yield f"{where}: terminationGracePeriodSeconds: expected more than the {budget} s in which it saves"
    waits = {variable.get("name"): variable.get("value") for variable in container.get("env", [])}
    if int(waits.get("RAY_JOB_STOP_WAIT_TIME_S") or 3) < budget:
        yield f"{where}: env.RAY_JOB_STOP_WAIT_TIME_S: expected at least {budget}: Ray kills after 3 s"


# -------------------------------------------------------------------- the rest
def _network_policy(manifest: Mapping[str, Any]) -> Iterator[str]:
    spec = manifest.get("spec", {})
    if set(spec.get("policyTypes", [])) != {"Ingress", "Egress"}:
        yield "policyTypes: expected Ingress and Egress"
    if not spec.get("podSelector", {}).get("matchLabels"):
        yield "podSelector: expected the pods of one run"
    for rule in spec.get("ingress", []):
        if not rule.get("from"):
            yield "ingress: expected rules that say from whom"
        if any(not peer or "ipBlock" in peer or peer == {"namespaceSelector": {}} for peer in rule.get("from", [])):
            yield "ingress: expected peers by label, not everybody"


def _volume(manifest: Mapping[str, Any]) -> Iterator[str]:
    modes = manifest.get("spec", {}).get("accessModes", [])
    if modes != ["ReadWriteMany"]:
        yield f"accessModes: expected ReadWriteMany, since all ranks write, received {modes}"


def _service(manifest: Mapping[str, Any]) -> Iterator[str]:
    kind = manifest.get("spec", {}).get("type", "ClusterIP")
    if kind != "ClusterIP":
        yield f"type: expected ClusterIP, received {kind}, which others reach; use kubectl port-forward"


def _service_of_compose(service: Mapping[str, Any]) -> Iterator[str]:
    for port in service.get("ports", []):
        if not re.match(r"(127\.0\.0\.1|\[::1\]):", str(port)):
            yield f"ports: expected 127.0.0.1:…, received {port!r}, which others reach"
    environment = service.get("environment", {})
    if environment.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN_PATH" not in environment:
        yield "environment: expected RAY_AUTH_MODE: token and RAY_AUTH_TOKEN_PATH"
    if any(sounds_secret(name) for name in environment):
        yield "environment: expected no secret itself, but one of secrets:"
    if not DIGEST.fullmatch(str(service.get("image", ""))):
        yield f"image: expected one by digest, received {service.get('image')!r}"
    if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
        yield "cap_drop, security_opt: expected [ALL] and no-new-privileges:true"
    if not str(service.get("user", "")).split(":")[0].strip("0"):
        yield "user: expected a number other than 0"
    if service.get("privileged") or service.get("network_mode") == "host":
        yield "privileged, network_mode: expected none of the host's"
    if int(str(service.get("stop_grace_period", "10s")).rstrip("s")) < 30:
        yield "stop_grace_period: expected at least 30s, in which the run saves"
