"""Answering questions from the feature store with a served model."""

from rag_fti.inference.building import build_engine
from rag_fti.inference.engine import Engine
from rag_fti.inference.models import ServedModel, open_model

__all__ = ["Engine", "ServedModel", "build_engine", "open_model"]
