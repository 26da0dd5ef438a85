"""Metrics of an engine: attach them, and pack one rank's state of them for the driver.

Users call `attach_metric` in `build(worker)`; what the ranks' packs become together is the driver's work.
"""

from workers.metrics.attach import AttachedMetric, attach_metric
from workers.metrics.pack import empty_copy, pack_metric, pack_numbers
from workers.metrics.running import RunningAverage

__all__ = ["AttachedMetric", "RunningAverage", "attach_metric", "empty_copy", "pack_metric", "pack_numbers"]
