"""Models: embedder, reranker, generators, and where they run.

Nothing is imported here: each module pulls in its libraries only when it is used.
"""
