"""Features: loading, cleaning, chunking, embedding and instruction data.

Meets training and inference only in the stores.
"""
