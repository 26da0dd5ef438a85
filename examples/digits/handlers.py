"""The driver's side: handlers that run once, wherever the ranks are; and one that runs beside the model, on rank 0."""

from workers import Events


def attach(orchestrator) -> None:
    best = {"epoch": 0, "accuracy": 0.0}

    @orchestrator.on(Events.EPOCH_COMPLETED)  # on the driver, once, after the shared evaluation
    def remember_the_best(run):
        accuracy = run.metrics["validation/accuracy"]
        if accuracy > best["accuracy"]:
            best.update(epoch=run.state.epoch, accuracy=accuracy)

    @orchestrator.on(Events.EPOCH_COMPLETED(every=5), rank=0)  # inside rank 0's process
    def look_at_a_filter(engine):
        model = engine.worker.program.state["model"]
        filters = model.features[0].weight.detach()
        if hasattr(filters, "to_local"):  # with FSDP2 rank 0 holds the first rows
            filters = filters.to_local()
        print(f"epoch {engine.state.epoch}: the first filter's norm is {filters[0].norm():.3f}")

    @orchestrator.on(Events.COMPLETED)
    def tell(run):
        print(f"best: {best['accuracy']:.3f} in epoch {best['epoch']}")
