"""The floor plan of the code: which file lives on which floor, and who may import what.

Meant to be edited: a new file goes on the lowest floor that is above everything it imports; a floor may
be put in between. `house.py` holds the rules that read this plan, `test_house.py` applies them.
"""

WORKERS = (  # the top floor first; a name that ends in /* is a folder
    ("actor.py",),
    ("session.py",),
    ("surviving.py",),
    ("serving.py",),
    ("rewinding.py", "speaking.py"),
    ("saving.py", "snapshot.py"),
    ("checkpointing.py", "own.py"),
    ("apart.py", "building.py", "evaluating.py", "gates.py", "optimizers.py", "reports.py", "steps.py", "writer.py"),
    ("gradients.py", "worker.py"),
    ("inplace.py", "program.py"),
    ("handlers/*",),
    ("parameters.py",),
    ("cut.py", "metrics/*", "pace.py", "shards.py", "strategy.py"),
    ("data/opening.py", "replicating.py"),
    ("data/loader.py", "engine.py", "handle.py", "sharding.py"),
    ("resumable.py",),
    ("saved.py", "steering.py"),
    ("cursor.py", "dispatch.py", "faults.py", "mailbox.py"),
    (
        *("boundary.py", "data/fetching.py", "data/sources.py", "dcp.py", "left_behind.py", "listeners.py"),
        *("messages.py", "orders.py", "parts.py"),
    ),
    ("index.py", "logs.py", "parcels.py", "secrets.py", "signature.py", "state.py"),
    ("foreign.py",),
    (
        *("data/processes.py", "data/replay.py", "data/sampler.py", "data/watched.py", "events.py", "feed.py"),
        *("handover.py",),
        *("locations.py", "process_group.py", "timers.py"),
    ),
    (
        *(
            "buckets.py",
            "collectives.py",
            "copies.py",
            "data/randomness.py",
            "devices.py",
            "digests.py",
            "expressions.py",
        ),
        *(
            "finite.py",
            "folder.py",
            "links.py",
            "expected.py",
            "microbatches.py",
            "objects.py",
            "recomputing.py",
            "rng.py",
        ),
        *("sharded.py", "structure.py"),
    ),
    ("giving_way.py", "laid.py"),
    (
        *("aliases.py", "data/carried.py", "data/fingerprint.py", "data/permutation.py"),
        *("errors.py", "failpoints.py", "family.py", "filters.py", "memory.py", "rank.py", "redaction.py"),
        *("retry.py", "sockets.py", "stacks.py", "storage.py", "streams.py", "tracebacks.py", "versions.py"),
        *("watchdog.py",),
    ),
)

ORCHESTRATOR = (
    ("__main__.py",),
    ("cli/*",),
    ("orchestrator.py",),
    ("ordering.py",),
    ("training.py",),
    ("parts.py",),
    ("run.py",),
    ("beginning.py",),
    ("moving.py", "watching.py"),
    ("regrouping.py",),
    ("reserves.py",),
    (
        *("guard.py", "headless.py", "ownership.py", "recording.py", "refused.py", "registrations.py", "resume.py"),
        *("saving.py",),
    ),
    ("asking.py",),
    ("gatekeeper.py", "handlers/*", "loggers/*"),
    ("checkpoints/export.py", "driver.py", "mishaps.py", "ranks.py", "shipping.py", "splits.py"),
    (
        *("bus.py", "checkpoints/reading.py", "checkpoints/references.py", "group.py", "local.py", "loop.py"),
        *("signals.py",),
    ),
    ("flight.py",),
    ("checkpoints/plan.py", "checkpoints/registry.py", "runs.py", "tailing.py"),
    ("contents.py", "streams.py"),
    ("clerk.py", "exchange.py", "killed.py", "nodes.py", "placement.py", "reduce.py", "rendezvous.py", "watch.py"),
    ("launch/*",),
    ("settings.py",),
    ("checkpoints/committed.py", "checkpoints/draft.py", "checkpoints/verify.py", "recovery.py"),
    ("checkpoints/*", "episode.py", "passed.py", "roll_call.py", "specfile.py", "stopping.py", "verdict.py"),
    ("budgets.py", "capacity.py", "leaving.py", "programs.py", "spec_problems.py", "target.py"),
    ("journal.py", "lease.py", "lifecycle.py", "limits.py", "result.py", "skew.py", "spec.py", "yaml_text.py"),
    ("spec_recovery.py",),
    (
        *("cluster_events.py", "driver_state.py", "errors.py", "interval.py", "notice.py", "samples.py"),
        *("spec_values.py", "timeouts.py"),
    ),
    ("causes.py", "contact.py", "stopwatch.py", "wording.py"),
)

FLOORS = {
    f"{package}/{name}": len(plan) - depth
    for package, plan in (("workers", WORKERS), ("orchestrator", ORCHESTRATOR))
    for depth, names in enumerate(plan)
    for name in names
}
"""Floor by path pattern, 1 at the bottom; the first pattern that fits a path counts."""

LIGHT = (
    "workers/errors.py",
    "workers/events.py",
    "workers/expressions.py",
    "workers/failpoints.py",
    "workers/family.py",
    "workers/filters.py",
    "workers/folder.py",
    "workers/locations.py",
    "workers/logs.py",
    "workers/memory.py",
    "workers/objects.py",
    "workers/rank.py",
    "workers/redaction.py",
    "workers/retry.py",
    "workers/secrets.py",
    "workers/stacks.py",
    "workers/storage.py",
    "workers/versions.py",
    "workers/watchdog.py",
)
"""Words of both sides, which know none of the heavy libraries below."""

DOORS = {
    "ray": (
        "workers/actor.py",
        "orchestrator/group.py",
        "orchestrator/nodes.py",
        "orchestrator/placement.py",
        "orchestrator/launch/*",
    ),
    "torch": (
        "workers/*",
        "orchestrator/checkpoints/*",
        "orchestrator/loggers/tensorboard.py",
        "orchestrator/reduce.py",
        "orchestrator/rendezvous.py",
    ),
    "torchmetrics": ("workers/*", "orchestrator/reduce.py"),
}
"""Who may import a heavy library; every other file goes through one of these."""

SHARED = {
    "orchestrator/*": (
        "workers.boundary",
        "workers.data.fingerprint",
        "workers.dispatch",
        "workers.errors",
        "workers.events",
        "workers.failpoints",
        "workers.family",
        "workers.folder",
        "workers.handlers.*",
        "workers.locations",
        "workers.logs",
        "workers.memory",
        "workers.messages",
        "workers.orders",
        "workers.parcels",
        "workers.rank",
        "workers.redaction",
        "workers.retry",
        "workers.secrets",
        "workers.stacks",
        "workers.state",
        "workers.storage",
        "workers.tracebacks",
        "workers.versions",
    ),
    "orchestrator/checkpoints/reading.py": ("workers.shards",),
    "orchestrator/checkpoints/plan.py": ("workers.dcp",),
    "orchestrator/samples.py": ("workers.data.sampler",),
    "orchestrator/episode.py": ("workers.left_behind",),
    "orchestrator/gatekeeper.py": ("workers.left_behind",),
    "orchestrator/regrouping.py": ("workers.left_behind",),
    "orchestrator/group.py": ("workers.actor",),
    "orchestrator/local.py": ("workers.mailbox", "workers.session"),  # the rank in the calling process
}
"""What a file of the driver may import from the rank's side."""

IMPORTS_ANYTHING_LATE = "orchestrator/cli/*"
"""A command imports what it runs inside its function, so that the other commands start without torch."""

MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 50

EMPTY_NAMES = {"manager", "helper", "helpers", "util", "utils", "common", "misc", "base"}

TOP_LEVEL = {
    *("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "pyproject.toml"),
    *("orchestrator", "workers", "tests", "deploy", "examples"),
    *(".ci", ".github", ".gitattributes", ".gitignore", ".dockerignore", ".pre-commit-config.yaml"),
}
