from __future__ import annotations

import inspect

from rag_fti import errors


def test_every_error_is_in_the_drawn_tree() -> None:
    drawing = errors.__doc__ or ""
    defined = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.RagFtiError)
    ]
    assert [name for name in defined if name not in drawing] == []


def test_exit_codes() -> None:
    assert errors.ConfigError("x").exit_code == 2
    assert errors.ContractViolation("x").exit_code == 3
    assert errors.SnapshotNotFound("x").exit_code == 1


def test_error_as_json() -> None:
    error = errors.ModelNotFound("no such model", next_step="train one")
    assert error.to_dict() == {
        "type": "ModelNotFound",
        "message": "no such model",
        "next_step": "train one",
    }
    assert str(error) == "no such model train one"
