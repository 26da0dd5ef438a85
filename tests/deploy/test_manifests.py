"""What is rendered for clusters: it is what stands in `deploy/`, it is safe, and those who read it take it.

The linter itself is tested by mutation: each manifest is broken in every way that a rule is about.
"""

import copy
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.launch.kubernetes import Options
from orchestrator.launch.lint import compose_problems, manifest_problems
from orchestrator.launch.targets import TARGETS, render
from orchestrator.spec import JobSpec
from tests.deploy.rendered import DEPLOY, IMAGE, RAY, committed, rendered

CRDS = os.environ.get(
    "RANKFIRE_CRDS"
)  # a folder with KubeRay's definitions: ray.io_rayjobs.yaml, ray.io_rayclusters.yaml
OPTIONS = Options(image=IMAGE, ray=RAY)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def of(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def spec(**changes: object) -> JobSpec:
    given = {"run": "digits", "program": "program:build", "train": {"max_epochs": 1}, "workers": 2, **changes}
    return JobSpec.model_validate(given)


MANIFESTS = sorted(path for path in rendered() if path.startswith("kubernetes/"))


def test_what_stands_in_deploy_is_what_is_rendered() -> None:
    assert committed() == rendered()


def test_every_folder_says_what_it_is_in_ten_lines() -> None:
    for folder in ("kubernetes", "slurm", "ray-up", "compose", "image", "observability"):
        assert len((DEPLOY / folder / "README.md").read_text().splitlines()) <= 14


def test_versions_are_those_of_the_lock() -> None:
    for path in ("rayjob", "rayjob-kueue", "raycluster-autoscaling"):
        assert f"rayVersion: {RAY}\n" in (DEPLOY / "kubernetes" / f"{path}.yaml").read_text()
    assert f"ray[default]=={RAY}" in (DEPLOY / "ray-up" / "aws.yaml").read_text()


@pytest.mark.parametrize("path", MANIFESTS)
def test_manifests_are_safe(path: str) -> None:
    assert manifest_problems(of(path)) == []


def test_compose_is_safe() -> None:
    assert compose_problems(of("compose/compose.yaml")) == []


# -------------------------------------------------------------------- mutations
def put(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        for part in path[:-1]:
            manifest = manifest[part]
        manifest[path[-1]] = to

    return change


def drop(*path: str | int) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        for part in path[:-1]:
            manifest = manifest[part]
        del manifest[path[-1]]

    return change


CLUSTER = ("spec", "rayClusterSpec")
RANKS = (*CLUSTER, "workerGroupSpecs", 0)
POD = (*CLUSTER, "headGroupSpec", "template", "spec")
CONTAINER = (*POD, "containers", 0)
SECRET = {"name": "WANDB_API_KEY", "value": "x"}
RAYJOB = {
    "authOptions.mode": [drop(*CLUSTER, "authOptions"), drop(*CLUSTER, "authOptions", "mode"),
                         put(*CLUSTER, "authOptions", "mode", to="disabled")],
    "rayVersion": [drop(*CLUSTER, "rayVersion"), put(*CLUSTER, "rayVersion", to="2.51.0")],
    "num-cpus": [drop(*CLUSTER, "headGroupSpec", "rayStartParams", "num-cpus")],
    "shutdownAfterJobFinishes": [drop("spec", "shutdownAfterJobFinishes")],
    "deletionStrategy": [put("spec", "deletionStrategy", to={"deletionRules": [{"policy": "DeleteNone"}]})],
    "clusterSelector": [put("spec", "clusterSelector", to={"ray.io/cluster": "x"})],
    "submissionMode": [put("spec", "submissionMode", to=mode) for mode in ("SidecarMode", "HTTPMode")],
    "activeDeadlineSeconds": [put("spec", "activeDeadlineSeconds", to=60)],
    "entrypointNumCpus": [put("spec", "entrypointNumCpus", to=1), put("spec", "entrypointNumGpus", to=1)],
    "runtimeEnvYAML": [put("spec", "runtimeEnvYAML", to="env_vars: {A: b}")],
    "metadata.name": [put("metadata", "name", to=name) for name in ("x" * 48, "Digits", "1st", "-", "")],
    "replicas": [put(*RANKS, "replicas", to=9), put(*RANKS, "minReplicas", to=3)],
    "maxReplicas": [put(*RANKS, "maxReplicas", to=5)],
    "rayStartParams: expected texts": [put(*RANKS, "rayStartParams", to={"num-cpus": 1})],
    "rayStartParams: not beside": [lambda m: m["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(
        resources={"CPU": "1"}, rayStartParams={"num-cpus": "1"})],
    "runAsNonRoot": [drop(*POD, "securityContext", "runAsNonRoot"), put(*POD, "securityContext", "runAsUser", to=0),
                     drop("spec", "submitterPodTemplate", "spec", "securityContext")],
    "seccompProfile": [drop(*POD, "securityContext", "seccompProfile")],
    "namespace of the host": [put(*POD, key, to=True) for key in ("hostNetwork", "hostPID", "hostIPC")],
    "restartPolicy": [put(*POD, "restartPolicy", to="Always")],
    "volumes": [put(*POD, "volumes", to=[{"name": "x", "hostPath": {"path": "/"}}])],
    "image": [put(*CONTAINER, "image", to=image) for image in ("rayproject/ray:latest", "ray", "ray@sha256:12")],
    "allowPrivilegeEscalation": [drop(*CONTAINER, "securityContext", "allowPrivilegeEscalation"),
                                 put(*CONTAINER, "securityContext", "privileged", to=True)],
    "capabilities": [drop(*CONTAINER, "securityContext", "capabilities")],
    "resources.limits": [drop(*CONTAINER, "resources", "limits"), drop(*CONTAINER, "resources", "limits", "memory")],
    "resources.requests": [put(*CONTAINER, "resources", "requests", to={"cpu": "9", "memory": "1Gi"})],
    "secretKeyRef": [lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
                     ["env"].append(SECRET)],
    "lifecycle.preStop": [drop(*CONTAINER, "lifecycle"),
                          put(*CONTAINER, "lifecycle", "preStop", "exec", "command", to=["sleep", "5"])],
    "terminationGracePeriodSeconds": [drop(*POD, "terminationGracePeriodSeconds")],
    "RAY_JOB_STOP_WAIT_TIME_S": [drop(*CONTAINER, "env")],
}  # fmt: skip
OTHERS = {
    "kubernetes/rayjob-kueue.yaml": {"suspend": [put("spec", "suspend", to=False)]},
    "kubernetes/raycluster-autoscaling.yaml": {"authOptions.mode": [drop("spec", "authOptions")]},
    "kubernetes/pvc.yaml": {"accessModes": [put("spec", "accessModes", to=["ReadWriteOnce"])]},
    "kubernetes/networkpolicy.yaml": {
        "policyTypes": [put("spec", "policyTypes", to=["Ingress"])],
        "podSelector": [put("spec", "podSelector", to={})],
        "ingress: expected rules": [put("spec", "ingress", 0, to={})],
        "ingress: expected peers": [
            put("spec", "ingress", 0, "from", to=[{"ipBlock": {"cidr": "0.0.0.0/0"}}]),
            put("spec", "ingress", 0, "from", to=[{"namespaceSelector": {}}]),
        ],
    },
}


def mutations() -> Iterator[Any]:
    for path, rules in {"kubernetes/rayjob.yaml": RAYJOB, **OTHERS}.items():
        for rule, changes in rules.items():
            for number, change in enumerate(changes):
                yield pytest.param(path, rule, change, id=f"{Path(path).stem}-{rule}-{number}")


@pytest.mark.parametrize(("path", "rule", "change"), [*mutations()])
def test_a_manifest_that_is_broken_is_refused_by_its_rule(path: str, rule: str, change: Callable[[Any], None]) -> None:
    broken = copy.deepcopy(of(path))
    change(broken)
    assert any(rule in problem for problem in manifest_problems(broken)), manifest_problems(broken)


@pytest.mark.parametrize("kind", ["LoadBalancer", "NodePort"])
def test_a_service_that_others_reach_is_refused(kind: str) -> None:
    service = {"kind": "Service", "metadata": {"name": "x"}, "spec": {"type": kind}}
    assert "others reach" in manifest_problems(service)[0]


COMPOSE = {
    "ports": put("services", "head", "ports", to=["8265:8265"]),
    "environment: expected RAY_AUTH_MODE": drop("services", "rank", "environment", "RAY_AUTH_MODE"),
    "no secret itself": put("services", "head", "environment", "RAY_AUTH_TOKEN", to="x"),
    "image": put("services", "head", "image", to="rayproject/ray:latest"),
    "cap_drop": drop("services", "rank", "cap_drop"),
    "user": put("services", "head", "user", to="0:0"),
    "privileged": put("services", "head", "network_mode", to="host"),
    "stop_grace_period": drop("services", "rank", "stop_grace_period"),
}


@pytest.mark.parametrize("rule", COMPOSE)
def test_a_compose_file_that_is_broken_is_refused_by_its_rule(rule: str) -> None:
    broken = of("compose/compose.yaml")
    COMPOSE[rule](broken)
    assert any(rule in problem for problem in compose_problems(broken)), compose_problems(broken)


# -------------------------------------------------------------------- those who read it
def strict(schema: Any) -> Any:
    """A structural schema that refuses unknown fields; what has a default need not be there."""
    if isinstance(schema, dict):
        known = schema.get("properties")
        if isinstance(known, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
            schema["required"] = [key for key in schema.get("required", []) if "default" not in known.get(key, {})]
        for child in schema.values():
            strict(child)
    elif isinstance(schema, list):
        for child in schema:
            strict(child)
    return schema


@cache
def definition(kind: str) -> Any:
    import jsonschema

    text = (Path(CRDS or "") / f"ray.io_{kind.lower()}s.yaml").read_text()
    [schema] = [
        version["schema"]["openAPIV3Schema"]
        for version in yaml.load(text, LOADER)["spec"]["versions"]
        if version["name"] == "v1"
    ]
    strict(schema)["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.skipif(not CRDS, reason="RANKFIRE_CRDS does not name a folder with KubeRay's definitions")
@pytest.mark.parametrize("path", [path for path in MANIFESTS if "/ray" in path])
def test_kuberays_own_definitions_take_the_manifests_and_refuse_a_slip(path: str) -> None:
    manifest = of(path)
    validator = definition(manifest["kind"])
    assert [error.message for error in validator.iter_errors(manifest)] == []
    slip = copy.deepcopy(manifest)
    slip["spec"]["submisionMode"] = "K8sJobMode"
    assert [error.json_path for error in validator.iter_errors(slip)] == ["$.spec"]


@pytest.mark.parametrize("path", [path for path in MANIFESTS if "/ray" not in path and "podmonitor" not in path])
def test_kubernetes_takes_the_rest(path: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validate.validate(of(path), "1.31", strict=True)


@pytest.mark.parametrize("provider", ["aws", "gcp", "on-premise"])
def test_ray_takes_the_files_of_its_launcher_and_refuses_a_slip(provider: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = of(f"ray-up/{provider}.yaml")
    validate_config(prepare_config(copy.deepcopy(cluster)))
    cluster["max_wrokers"] = 1
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(cluster))


@pytest.mark.parametrize("provider", ["aws", "gcp", "on-premise"])
def test_machines_ask_for_a_token_and_dump_no_cores(provider: str) -> None:
    text = (DEPLOY / "ray-up" / f"{provider}.yaml").read_text()
    assert "RAY_AUTH_MODE=token" in text
    assert "auth_token" in text
    assert "ulimit -c" not in text
    assert "--dashboard-host=127.0.0.1" in text


def test_only_ssh_is_open_on_rented_machines() -> None:
    [rule] = of("ray-up/aws.yaml")["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"]) == (22, 22, [{"CidrIp": "10.0.0.0/8"}])


def test_the_shell_takes_the_batch_script() -> None:
    subprocess.run(["bash", "-n", DEPLOY / "slurm" / "run.sbatch"], check=True)


def test_a_job_files_name_is_no_command(tmp_path: Path) -> None:
    files = render("slurm", spec(), OPTIONS, job="a; touch x.yaml", sets=["run=$(id)"])
    assert "run 'a; touch x.yaml' --set 'run=$(id)' &" in files["run.sbatch"]


def test_the_image_has_no_default_base_and_no_root() -> None:
    text = (DEPLOY / "image" / "Dockerfile").read_text()
    assert re.findall(r"^(?:FROM|ARG BASE|USER).*", text, re.MULTILINE) == [
        "ARG BASE", "FROM ${BASE} AS build", "FROM ${BASE}", "USER 10001:10001",
    ]  # fmt: skip
    assert "-c constraints.txt" in text
    assert not re.search(r"apt-get|curl|wget|gcc|:latest", text)


def test_the_dashboard_shows_metrics_that_ray_has() -> None:
    dashboard = json.loads((DEPLOY / "observability" / "dashboard.json").read_text())
    asked = {target["expr"].removeprefix("ray_") for panel in dashboard["panels"] for target in panel["targets"]}
    ray = metadata.distribution("ray").locate_file("ray")
    known = (
        Path(str(ray)) / "dashboard" / "modules" / "metrics" / "dashboards" / "default_dashboard_panels.py"
    ).read_text()
    assert {metric for metric in asked if f"ray_{metric}" not in known} == set()


# -------------------------------------------------------------------- bad input
@pytest.mark.parametrize("target", [target for target in TARGETS if target in ("kubernetes", "kueue", "raycluster")])
def test_a_name_that_is_too_long_is_refused_with_the_way_out(target: str) -> None:
    with pytest.raises(SpecError, match=r"at most 47 .*\(49 characters\); give a shorter one: --name digits"):
        render(target, spec(run="x" * 40), OPTIONS, job="job.yaml")
    files = render(target, spec(run="X." * 20 + "-"), Options(image=IMAGE, ray=RAY, name="short"), job="job.yaml")
    claim = yaml.safe_load(files["pvc.yaml"])["metadata"]
    assert (claim["name"], claim["labels"]["rankfire.dev/run"]) == ("short", "short")  # a run id need not be a label


def test_an_image_without_digest_is_refused_and_every_place_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        render("kubernetes", spec(), Options(image="rayproject/ray:latest", ray=RAY), job="job.yaml")
    places = ["headGroupSpec", "workerGroupSpecs.ranks", "submitterPodTemplate"]
    told = [f"render kubernetes: rayjob.yaml: {place}: image: expected one by digest" for place in places]
    assert [problem.partition(" (…")[0] for problem in caught.value.problems] == told


def test_gpus_are_asked_for_and_tolerated() -> None:
    files = render("kubernetes", spec(workers={"count": 4, "gpus": 1, "spares": 1}), OPTIONS, job="job.yaml")
    [group] = yaml.safe_load(files["rayjob.yaml"])["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert (group["replicas"], pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) == (5, "1")
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "#SBATCH --gpus-per-node=3" in render(
        "slurm", spec(workers={"count": 4, "gpus": 1, "spares": 1}), OPTIONS, job="job.yaml", nodes=2
    )["run.sbatch"]  # fmt: skip


def test_a_url_needs_no_volume() -> None:
    files = render("kubernetes", spec(storage="s3://bucket/runs"), OPTIONS, job="job.yaml")
    assert "pvc.yaml" not in files
    assert "storage: s3://bucket/runs" in files["configmap.yaml"]
    assert "/runs\n" not in files["rayjob.yaml"].replace("s3://bucket/runs", "")
