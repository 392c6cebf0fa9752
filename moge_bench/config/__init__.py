"""Settings of a run: what there is to set, what names a run, how one setting is overridden."""

from moge_bench.config.build import build_config
from moge_bench.config.data import DataConfig, ImageDataConfig, TextDataConfig
from moge_bench.config.faults import faults, read_model
from moge_bench.config.frozen import RECORDED, Frozen
from moge_bench.config.models import (
    DENSE_RUN,
    ImageBackboneConfig,
    LanguageModelConfig,
    ModelConfig,
    SwinModelConfig,
    TextBackboneConfig,
    VisionModelConfig,
)
from moge_bench.config.overrides import field_paths, nearest, set_path
from moge_bench.config.schema import (
    MAX_SEED,
    GroupConfig,
    MoEConfig,
    ResidualConfig,
    RunConfig,
    SigmaConfig,
    TrainingConfig,
)

__all__ = [
    "DENSE_RUN",
    "MAX_SEED",
    "RECORDED",
    "DataConfig",
    "Frozen",
    "GroupConfig",
    "ImageBackboneConfig",
    "ImageDataConfig",
    "LanguageModelConfig",
    "MoEConfig",
    "ModelConfig",
    "ResidualConfig",
    "RunConfig",
    "SigmaConfig",
    "SwinModelConfig",
    "TextBackboneConfig",
    "TextDataConfig",
    "TrainingConfig",
    "VisionModelConfig",
    "build_config",
    "faults",
    "field_paths",
    "nearest",
    "read_model",
    "set_path",
]
