"""The strict base that every configuration section shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, values: Any) -> Any:
        """A text that was left empty is empty, and one value stands for a list of one."""
        if not isinstance(values, Mapping):
            return values
        read = dict(values)
        for name, field in cls.model_fields.items():
            if field.annotation is str and read.get(name, "") is None:
                read[name] = ""
            elif get_origin(field.annotation) is tuple and isinstance(read.get(name), str):
                read[name] = (read[name],)
        return read
