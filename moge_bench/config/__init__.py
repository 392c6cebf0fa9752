"""Settings of a run: what there is to set, what names a run, how one setting is overridden."""

from moge_bench.config.identity import config_hash
from moge_bench.config.overrides import field_paths, nearest, set_path
from moge_bench.config.schema import (
    DataConfig,
    Frozen,
    GroupConfig,
    ImageDataConfig,
    LanguageModelConfig,
    Method,
    ModelConfig,
    MoEConfig,
    ResidualConfig,
    RunConfig,
    SigmaConfig,
    TextDataConfig,
    TrainingConfig,
    VisionModelConfig,
    build_config,
)

__all__ = [
    "DataConfig",
    "Frozen",
    "GroupConfig",
    "ImageDataConfig",
    "LanguageModelConfig",
    "Method",
    "MoEConfig",
    "ModelConfig",
    "ResidualConfig",
    "RunConfig",
    "SigmaConfig",
    "TextDataConfig",
    "TrainingConfig",
    "VisionModelConfig",
    "build_config",
    "config_hash",
    "field_paths",
    "nearest",
    "set_path",
]
