"""The driver's side: handlers that run once, wherever the ranks are."""

from workers import Events


def attach(orchestrator) -> None:
    best = {"accuracy": 0.0}

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def remember_the_best(run):
        best["accuracy"] = max(best["accuracy"], run.metrics["validation/accuracy"])

    @orchestrator.on(Events.COMPLETED)
    def tell(run):
        print(f"best accuracy on {run.settings.world_size} ranks: {best['accuracy']:.3f}")

    @orchestrator.on(Events.EPOCH_COMPLETED(every=2), rank=0)
    def look_at_weights(engine):
        model = engine.worker.program.state["model"]
        print(f"rank 0, epoch {engine.state.epoch}: first filter's norm {model.features[0].weight[0].norm():.3f}")
