"""Loggers: what a run measures, told to files or trackers by the driver. `orchestrator.attach(CSVLogger())`."""

from orchestrator.loggers.files import CSVLogger, JSONLLogger
from orchestrator.loggers.logger import Logger
from orchestrator.loggers.mlflow import MLflowLogger
from orchestrator.loggers.tensorboard import TensorBoardLogger
from orchestrator.loggers.wandb import WandbLogger

__all__ = ["CSVLogger", "JSONLLogger", "Logger", "MLflowLogger", "TensorBoardLogger", "WandbLogger"]
