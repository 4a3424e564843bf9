"""The recipe of the embedded base model: build, train, evaluate."""
