"""Search over the feature store, and the passages that go into a prompt.

Dataset building and inference use this one package, so that a model is trained on the context
it will be served with.
"""

from rag_fti.retrieval.building import build_retriever, retrieval_settings
from rag_fti.retrieval.filters import restrict
from rag_fti.retrieval.packing import pack_passages
from rag_fti.retrieval.retriever import Retrieved, Retriever

__all__ = [
    "Retrieved",
    "Retriever",
    "build_retriever",
    "pack_passages",
    "restrict",
    "retrieval_settings",
]
