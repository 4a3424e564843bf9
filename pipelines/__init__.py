"""One program per artifact. Pipelines never import one another; only shared storage joins them."""
