"""Every error this project raises on purpose.

::

    RagFtiError                     exit 1
    ├── ConfigError                 exit 2   unknown key, wrong type, bad value
    ├── SourceError                 exit 1   a document or input file cannot be read
    ├── StoreError                  exit 1   the feature store cannot be read or written
    │   ├── SnapshotNotFound                 no such version or tag
    │   └── SchemaMismatch                   stored schema_version or columns differ
    ├── DatasetError                exit 1   an instruction dataset cannot be read or built
    ├── TrainingError               exit 1   a fine-tune cannot go on (NaN loss, out of memory)
    ├── RegistryError               exit 1   the model registry cannot be read or written
    │   ├── ModelNotFound                    no such model, version or alias
    │   └── IncompatibleArtifact             two artifacts were not made for each other
    ├── ContractViolation           exit 3   a pipeline broke, or was refused by, its contract
    └── InferenceError              exit 1   an answer cannot be produced
        ├── ContextTooLong                   the prompt does not fit the model
        ├── EngineDown                       the remote model fails whatever is asked
        └── Overloaded                       the queue is full: try again later
"""

from __future__ import annotations

from typing import ClassVar


class RagFtiError(Exception):
    """Base of all errors of this project.

    Args:
        message: What went wrong, what was got and what was expected.
        next_step: What the reader can do about it; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".rstrip()

    def to_dict(self) -> dict[str, str]:
        """The error as scripts see it with ``--json`` (under the key ``error``)."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "next_step": self.next_step,
        }


class ConfigError(RagFtiError):
    """A configuration file, override or argument is wrong."""

    exit_code = 2


class SourceError(RagFtiError):
    """A document or input file cannot be read."""


class StoreError(RagFtiError):
    """The feature store cannot be opened, read or written."""


class SnapshotNotFound(StoreError):
    """The feature store has no such version or tag."""


class SchemaMismatch(StoreError):
    """A stored table does not have the columns or schema version of this release."""


class DatasetError(RagFtiError):
    """An instruction dataset cannot be built, found or read."""


class TrainingError(RagFtiError):
    """A fine-tune cannot start or go on."""


class RegistryError(RagFtiError):
    """The model registry cannot be read or written."""


class ModelNotFound(RegistryError):
    """The registry has no such model, version or alias."""


class IncompatibleArtifact(RegistryError):
    """Two artifacts (store, dataset, model) were not made for each other."""


class ContractViolation(RagFtiError):
    """A precondition, postcondition or invariant of a pipeline does not hold."""

    exit_code = 3


class InferenceError(RagFtiError):
    """An answer cannot be produced."""


class ContextTooLong(InferenceError):
    """The prompt does not fit the model's context window."""


class EngineDown(InferenceError):
    """A remote model fails whatever it is asked."""


class Overloaded(InferenceError):
    """The request queue is full."""
