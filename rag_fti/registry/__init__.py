"""The model registry: immutable numbered versions, and aliases with an append-only history."""

from rag_fti.registry.aliases import AliasChange
from rag_fti.registry.registry import Registry
from rag_fti.registry.versions import ModelVersion, manifest_digest, parse_reference

__all__ = ["AliasChange", "ModelVersion", "Registry", "manifest_digest", "parse_reference"]
