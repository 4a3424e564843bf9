from __future__ import annotations

import pytest

from serving.tracing import span


def test_spans_cost_nothing_and_accept_attributes_without_a_set_up() -> None:
    with span("chat", {"a": 1}) as current:
        current.set_attributes({"b": True, "c": "text", "d": 0.5})
    with pytest.raises(ValueError, match="inside"), span("chat", {}):
        raise ValueError("inside")
