"""The library: feature, training and inference code that meets only at shared storage."""
