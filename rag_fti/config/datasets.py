"""The instruction dataset pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rag_fti.config.section import Section


class TeacherConfig(Section):
    """An OpenAI-compatible endpoint that writes questions."""

    base_url: str = ""
    """Empty: ``OPENAI_API_BASE`` from the environment."""
    model: str = ""
    """Model name; empty switches the teacher off."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests in flight at once."""
    max_requests: Annotated[int, Field(ge=1)] = 10_000
    """Budget of requests per build, repeated ones too."""
    max_tokens_total: Annotated[int, Field(ge=1)] = 5_000_000
    """Budget of tokens (prompt and completion) per build."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest wait for one reply."""


class DatasetConfig(Section):
    """What goes into a dataset version."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "instructions"
    """Directory name under the datasets root."""
    collection: str = ""
    """Only documents of this collection; empty takes all."""
    at: str = ""
    """Feature store version or tag to build from; empty is the newest."""
    generators: tuple[Literal["structure", "model", "teacher", "pairs", "feedback"], ...] = (
        "structure",
        "pairs",
    )
    """Where question and answer pairs come from."""
    pairs: tuple[Path, ...] = ()
    """Question files (JSONL as in the docs, or CSV with ``question`` and ``answer``); what lines
    marked ``held_out`` ask is never trained on, whoever asks it."""
    evaluation_questions: tuple[Path, ...] = ()
    """Question files that must not leak into the dataset, besides ``evaluation.questions``: their
    ``held_out`` lines, or all where none is marked."""
    passages: Annotated[int, Field(ge=0, le=50)] = 0
    """Passages in each example's context; 0 takes ``retrieval.k``, as serving does (the packer may
    keep fewer)."""
    unanswerable_share: Annotated[float, Field(ge=0, le=0.9)] | None = None
    """Share of examples whose context lacks the supporting chunk; none given: a tenth of those that
    rules did not make, as theirs would teach to abstain from questions in other words."""
    questions_per_chunk: Annotated[int, Field(ge=1, le=50)] = 4
    """Most generated questions per chunk."""
    max_examples: Annotated[int, Field(ge=0)] = 0
    """Most examples in all, your own pairs and feedback first; 0 is no limit."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of document groups in the validation split."""
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of document groups in the test split."""
    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity from which texts count as near duplicates: of word 5-grams for documents,
    of character 4-grams for questions."""
    seed: int = 17
    """Seed of all sampling."""
    teacher: TeacherConfig = TeacherConfig()
    """The teacher endpoint."""
