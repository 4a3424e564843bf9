"""The feature store: documents and chunks with vectors in LanceDB, and the logs of inference.

Only this package imports lancedb. Every condition in which the store cannot be read or written
raises :class:`rag_fti.errors.StoreError`; an empty list always means that nothing was found.
"""

from rag_fti.feature_store.store import FeatureStore, StoreRecipe
from rag_fti.feature_store.tables import sql_in, sql_string

__all__ = ["FeatureStore", "StoreRecipe", "sql_in", "sql_string"]
