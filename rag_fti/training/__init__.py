"""Fine-tuning: from one dataset version and one base model to files for the registry.

Nothing is imported here, so that a program can read this package's names without loading torch.

- :mod:`~rag_fti.training.examples`: dataset rows to token ids, through the one prompt renderer
- :mod:`~rag_fti.training.packing`: several examples in one row
- :mod:`~rag_fti.training.batches`: rows to tensors
- :mod:`~rag_fti.training.probing`: what a model can do without changing its results
- :mod:`~rag_fti.training.adapter`: LoRA, DoRA, rsLoRA, QLoRA
- :mod:`~rag_fti.training.fitting`: the run itself: checkpoints, resume, early stopping
- :mod:`~rag_fti.training.throughput`: tokens/s, MFU, memory
- :mod:`~rag_fti.training.reporting`: card, report and loss curve
- :mod:`~rag_fti.training.bundles`: one directory that trains elsewhere
"""
