"""The ``rag-fti`` commands, one module per group; each has ``register(app)``."""
