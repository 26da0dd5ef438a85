"""Where a job can run, and what is rendered for it there; `deploy/` holds the digits job's, and a test compares them.

Called by `rankfire render`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import yaml

from orchestrator.errors import SpecError
from orchestrator.launch import kubernetes, machines
from orchestrator.launch.kubernetes import Options
from orchestrator.launch.lint import compose_problems, manifest_problems
from orchestrator.launch.slurm import batch_script
from orchestrator.spec import JobSpec

__all__ = ["TARGETS", "render"]

TARGETS = ("kubernetes", "kueue", "raycluster", "slurm", "aws", "gcp", "on-premise", "compose")
HEADER = "# Rendered by `rankfire render {target}` for run {run}; render it anew instead of editing it.\n"


def render(
    target: str, spec: JobSpec, options: Options, *, job: str, sets: Sequence[str] = (), nodes: int = 1
) -> dict[str, str]:
    """What a job needs to run somewhere.

    Args:
        target: one of `TARGETS`.
        spec: the job.
        options: what the job file does not say.
        job: path of the job file.
        sets: overrides of it, as given to --set.
        nodes: of a Slurm job.

    Returns:
        File name → text.

    Raises:
        SpecError: what would come out is refused there, or is not safe; all reasons at once.
    """
    if target == "slurm":
        return {"run.sbatch": batch_script(spec, job, sets=sets, nodes=nodes, grace=options.grace)}
    if target == "compose":
        compose = machines.compose(spec, options)
        _refuse(target, compose_problems(compose))
        return {"compose.yaml": _text(target, spec, compose)}
    if target in ("aws", "gcp", "on-premise"):
        provider = "local" if target == "on-premise" else target
        return {f"{target}.yaml": _text(target, spec, machines.ray_up(spec, options, provider))}
    return {name: _text(target, spec, manifest) for name, manifest in _manifests(target, spec, options).items()}


def _manifests(target: str, spec: JobSpec, options: Options) -> dict[str, dict[str, Any]]:
    main: dict[str, Callable[[], dict[str, Any]]] = {
        "kubernetes": lambda: kubernetes.ray_job(spec, options),
        "kueue": lambda: kubernetes.ray_job(spec, options, kueue=True),
        "raycluster": lambda: kubernetes.ray_cluster(spec, options),
    }
    names = {"kubernetes": "rayjob", "kueue": "rayjob-kueue", "raycluster": "raycluster-autoscaling"}
    made = {
        "configmap.yaml": kubernetes.config_map(spec, options),
        **({"pvc.yaml": kubernetes.volume(spec, options)} if "://" not in spec.storage else {}),
        "networkpolicy.yaml": kubernetes.network_policy(spec, options),
        "podmonitor.yaml": kubernetes.pod_monitor(spec, options),
        f"{names[target]}.yaml": main[target](),
    }
    _refuse(target, [f"{name}: {problem}" for name, found in made.items() for problem in manifest_problems(found)])
    return made


def _refuse(target: str, problems: list[str]) -> None:
    if problems:
        raise SpecError(*(f"render {target}: {problem}" for problem in problems))


class _Dumper(yaml.SafeDumper):
    """Plain YAML: values written out, long texts as blocks."""

    def ignore_aliases(self, data: object) -> bool:
        """Write every value out."""
        return True


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent)


def _text(target: str, spec: JobSpec, content: dict[str, Any]) -> str:
    return HEADER.format(target=target, run=spec.run) + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)
