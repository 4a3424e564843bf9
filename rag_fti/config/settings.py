"""The whole configuration."""

from __future__ import annotations

from rag_fti.config.datasets import DatasetConfig
from rag_fti.config.evaluation import EvaluationConfig
from rag_fti.config.features import (
    ChunkingConfig,
    FeatureMonitoringConfig,
    FeatureValidationConfig,
    IndexConfig,
    IngestConfig,
    LoadingConfig,
)
from rag_fti.config.inference import (
    BatchConfig,
    InferenceConfig,
    RetrievalConfig,
    ServingConfig,
)
from rag_fti.config.models import (
    EmbedderConfig,
    GeneratorConfig,
    LocalGeneratorConfig,
    RerankerConfig,
)
from rag_fti.config.section import Section
from rag_fti.config.storage import StorageConfig
from rag_fti.config.training import TrainingConfig


class Settings(Section):
    """All sections; a YAML file may set any part of them.

    One tree for all pipelines keeps what must agree (embedder, chunking, retrieval) in one
    place: that is half of "no training/serving skew".
    """

    storage: StorageConfig = StorageConfig()
    """Where things are."""
    embedder: EmbedderConfig = EmbedderConfig()
    """Model for vectors."""
    reranker: RerankerConfig = RerankerConfig()
    """Model for re-ordering hits."""
    generator: GeneratorConfig = LocalGeneratorConfig()
    """Model for answers."""
    loading: LoadingConfig = LoadingConfig()
    """Reading files."""
    chunking: ChunkingConfig = ChunkingConfig()
    """Cutting documents."""
    ingest: IngestConfig = IngestConfig()
    """Feature pipeline."""
    index: IndexConfig = IndexConfig()
    """Vector and full-text indexes."""
    feature_validation: FeatureValidationConfig = FeatureValidationConfig()
    """Feature validation pipeline."""
    feature_monitoring: FeatureMonitoringConfig = FeatureMonitoringConfig()
    """Feature monitoring pipeline."""
    dataset: DatasetConfig = DatasetConfig()
    """Instruction dataset pipeline."""
    training: TrainingConfig = TrainingConfig()
    """Training pipeline."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Model validation pipeline."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """Search settings of dataset building and inference."""
    inference: InferenceConfig = InferenceConfig()
    """Answering."""
    serving: ServingConfig = ServingConfig()
    """HTTP server."""
    batch: BatchConfig = BatchConfig()
    """Batch inference pipeline."""
