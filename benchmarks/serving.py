"""What serving costs: added latency without load, and throughput against the bare engine.

    python benchmarks/serving.py --chunks 100000 --out serving.json
    python benchmarks/serving.py --model HuggingFaceTB/SmolLM2-135M-Instruct

All numbers of one call come from one run on one machine, side by side:

- *added latency*: a completion over HTTP with a model that answers at once, one client, so
  that everything but generation is left: HTTP, embedding the question, hybrid search over
  ``--chunks`` chunks, packing, citing, logging;
- *served*: ``--streams`` clients that each send one streamed completion after the other;
- *bare*: the same prompts handed to the engine at once (``generate_batch`` where the model has
  it, and a padded static batch), no HTTP, no retrieval;
- *one at a time*: one client, one stream.

Without ``--model`` a random Llama of 30 million weights generates: its answers mean nothing, its
cost is that of a real one of the size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
# This file's folder would hide the package ``serving``.
sys.path[0] = str(CHECKOUT)

WORDS = [
    *("tide", "gate", "turbine", "valve", "shift", "rotor", "winter", "supply", "pier", "anchor"),
    *("member", "vote", "budget", "permit", "crew", "depth", "salt", "meter", "panel", "record"),
    *("spring", "storm", "cable", "bolt", "grease", "repair", "notice", "fee", "year"),
]
QUESTION_WORDS = 9


def main() -> None:
    """Measure and print, or play the client."""
    arguments = parse()
    if arguments.client:
        print(
            json.dumps(asyncio.run(drive(arguments.client, arguments.streams, arguments.requests)))
        )
        return
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """Command line options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=100_000, help="chunks in the store")
    parser.add_argument("--streams", type=int, default=16, help="concurrent clients")
    parser.add_argument("--requests", type=int, default=96, help="completions per measurement")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--context", type=int, default=400, help="token budget of the passages")
    parser.add_argument("--model", default="", help="base model; empty: a random Llama")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--client", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, in one process over one store."""
    from rag_fti.config import load_settings
    from rag_fti.feature_store import FeatureStore
    from rag_fti.models.embedder import build_embedder
    from rag_fti.retrieval import build_retriever

    settings = load_settings(
        values={
            "storage.root": str(folder / "data"),
            "retrieval.k": 2,
            "retrieval.context_tokens": arguments.context,
            "inference.max_tokens": arguments.tokens,
            "generator.max_batch": arguments.streams,
            "serving.max_queue": 1000,
        },
        environment={},
    )
    embedder = build_embedder(settings.embedder)
    store = FeatureStore.open(settings.storage.features_uri)
    started = time.perf_counter()
    fill(store, embedder, chunks=arguments.chunks, settings=settings)
    filled = time.perf_counter() - started
    note(f"{arguments.chunks} chunks stored in {filled:.0f} s")
    retriever = build_retriever(settings, store=store, embedder=embedder)
    result: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "threads": arguments.threads},
        "chunks": arguments.chunks,
        "search": vars(store.search_policy())
        if hasattr(store.search_policy(), "__dict__")
        else str(store.search_policy()),
    }
    result["added_latency"] = added_latency(settings, retriever, arguments)
    note(f"added latency: {result['added_latency']}")
    result["throughput"] = throughput(folder, settings, retriever, arguments)
    return result


def fill(store: Any, embedder: Any, *, chunks: int, settings: Any) -> None:
    """A store of synthetic chunks: sentences of the words above, vectors around their topics."""
    import numpy as np
    import pyarrow as pa

    from rag_fti import ids, schemas

    random = np.random.default_rng(1)
    fingerprint = embedder.fingerprint
    store.prepare(fingerprint, language="English", stemming=True)
    topics = embedder.encode_documents([" ".join(random.choice(WORDS, 30)) for _ in range(256)])
    now = datetime.now(UTC)
    per_document = 50
    per_commit = 20_000
    for first in range(0, chunks, per_commit):
        rows, documents = [], []
        for number in range(first, min(chunks, first + per_commit)):
            text = " ".join(random.choice(WORDS, 60)) + f" number {number}."
            name, ordinal = divmod(number, per_document)
            document = ids.document_id("default", str(name))
            noise = random.normal(size=fingerprint.dimension).astype(np.float32)
            vector = topics[random.integers(len(topics))] + 0.6 * noise / np.linalg.norm(noise)
            rows.append(
                {
                    "chunk_id": ids.content_id("c", str(number)),
                    "document_id": document,
                    "document_version": "1",
                    "collection": "default",
                    "source": f"{name}.md",
                    "title": f"Page {name}",
                    "heading": "",
                    "page": None,
                    "ordinal": ordinal,
                    "start": ordinal * 1000,
                    "end": ordinal * 1000 + len(text),
                    "tokens": 62,
                    "text": text,
                    "indexed_text": text,
                    "indexed_digest": str(number),
                    "vector": vector / np.linalg.norm(vector),
                    "ingested_at": now,
                }
            )
            if ordinal == 0:
                documents.append(
                    {
                        **{f.name: "" for f in schemas.documents_schema()},
                        "document_id": document,
                        "collection": "default",
                        "source": f"{name}.md",
                        "sources": [f"{name}.md"],
                        "chunk_count": per_document,
                        "ingested_at": now,
                    }
                )
        store.write_documents(
            pa.Table.from_pylist(documents, schema=schemas.documents_schema()),
            pa.Table.from_pylist(rows, schema=schemas.chunks_schema(fingerprint.dimension)),
        )
    store.optimize()
    index = settings.index
    store.update_vector_index(
        kind=index.type, exact_below=index.exact_below, target_recall=index.target_recall
    )


def added_latency(settings: Any, retriever: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """One client, and a model that answers at once."""
    with served(settings, retriever, Instant()) as url:
        drive_apart(url, streams=1, requests=20)  # warm
        one = drive_apart(url, streams=1, requests=200)
    return {key: one[key] for key in ("requests", "p50_ms", "p95_ms", "p99_ms", "parts_ms")}


def throughput(
    folder: Path, settings: Any, retriever: Any, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Tokens per second of the engine alone and behind the server, on the same prompts."""
    import torch

    from rag_fti import prompts
    from rag_fti.inference.building import assemble
    from rag_fti.inference.models import ServedModel
    from rag_fti.models.local import load_local_generator

    base = base_model(folder, arguments.model)
    generator = load_local_generator(
        location=base, name="benchmark", max_batch=arguments.streams, dtype="float32"
    )
    note(f"generator {arguments.model or 'random Llama'} is loaded")
    engine = assemble(settings, retriever=retriever, served=ServedModel(generator))
    questions = list(questions_of(arguments.requests))
    retrieved = retriever.retrieve_many(questions)
    prepared = [
        engine._prepare(q, engine._condense(q, ()), found, sampling_of(arguments))
        for q, found in zip(questions, retrieved, strict=True)
    ]
    requests = [item.request for item in prepared if item.request is not None]
    prompt_ids = [prompts.prompt_token_ids(generator._tokenizer, r.messages) for r in requests]
    generator.generate(requests[: arguments.streams])  # warm
    started = time.perf_counter()
    made = []
    for first in range(0, len(requests), arguments.streams):
        made += generator.generate(requests[first : first + arguments.streams])
    static = sum(g.completion_tokens for g in made) / (time.perf_counter() - started)
    note(f"padded static batches: {static:.0f} tokens/s")
    bare = bare_engine(generator, prompt_ids, arguments)
    note(f"generate_batch: {bare}")
    with served(settings, retriever, generator) as url:
        drive_apart(url, streams=arguments.streams, requests=arguments.streams)  # warm
        many = drive_apart(url, streams=arguments.streams, requests=arguments.requests)
        note(f"served, {arguments.streams} streams: {many}")
        single = drive_apart(url, streams=1, requests=max(8, arguments.requests // 8))
        note(f"served, one at a time: {single}")
    torch.set_num_threads(arguments.threads)
    best = max(static, bare or 0.0)
    return {
        "prompt_tokens_mean": statistics.mean(map(len, prompt_ids)),
        "completion_tokens_mean": statistics.mean(g.completion_tokens for g in made),
        "bare_generate_batch_tokens_per_second": bare,
        "bare_static_batch_tokens_per_second": round(static, 1),
        "served": many,
        "one_at_a_time": single,
        "served_to_generate_batch": round(many["tokens_per_second"] / bare, 3) if bare else None,
        "served_to_best_bare": round(many["tokens_per_second"] / best, 3),
        "served_to_one_at_a_time": round(
            many["tokens_per_second"] / single["tokens_per_second"], 2
        ),
    }


def sampling_of(arguments: argparse.Namespace) -> Any:
    """Greedy, at most ``--tokens`` tokens."""
    from rag_fti.inference.engine import Sampling

    return Sampling(max_tokens=arguments.tokens)


def bare_engine(
    generator: Any, prompt_ids: Sequence[list[int]], arguments: argparse.Namespace
) -> float | None:
    """Tokens per second of transformers' continuous batching; None where the model has none."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    longest = max(map(len, prompt_ids)) + arguments.tokens
    pages = -(-longest // 64) + 1
    # Without a bound the paged cache takes most of the machine's memory.
    bounded = ContinuousBatchingConfig(
        page_size=64,
        num_blocks=pages * arguments.streams,
        max_batch_tokens=2048,
        max_requests_per_batch=arguments.streams,
    )
    model = generator._model
    config = GenerationConfig(
        max_new_tokens=arguments.tokens,
        do_sample=False,
        eos_token_id=sorted(generator._end_ids),
        pad_token_id=generator._pad_id,
    )
    try:
        options = {
            "generation_config": config,
            "continuous_batching_config": bounded,
            "progress_bar": False,
        }
        model.generate_batch(inputs=list(prompt_ids[:2]), **options)
        started = time.perf_counter()
        outputs = model.generate_batch(inputs=list(prompt_ids), **options)
        seconds = time.perf_counter() - started
    except (AttributeError, ValueError, NotImplementedError, RuntimeError) as error:
        note(f"no generate_batch: {error}")
        return None
    finally:
        model.set_attn_implementation("sdpa")
    tokens = sum(len(output.generated_tokens) for output in outputs.values())
    return round(tokens / seconds, 1)


def base_model(folder: Path, name: str) -> Path:
    """Directory of the model that generates."""
    if name:
        from rag_fti.models.causal import resolve_base_model

        return resolve_base_model(name).location
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.inference.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer(context=4096)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # The tokenizer is small; only its tokens are ever chosen, and never the end.
        model.lm_head.weight[len(tokenizer) :] = 0
        model.lm_head.weight[:5] = 0
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


class Instant:
    """A model that answers at once."""

    model = "instant"
    context_window = 4096

    def count_prompt_tokens(self, messages: Any) -> int:
        """Words."""
        return sum(len(m["content"].split()) for m in messages)

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())

    def generate(self, requests: Any) -> Any:
        """One answer per request."""
        return [list(self.stream(request))[-1] for request in requests]

    def stream(self, request: Any, cancellation: Any = None) -> Iterator[Any]:
        """One piece, then the end."""
        from rag_fti.protocols import Generation

        yield "Nothing to say [1]"
        yield Generation("Nothing to say [1]", 100, 4, "stop")


@contextmanager
def served(settings: Any, retriever: Any, generator: Any) -> Iterator[str]:
    """A real server on a free port; yields its address."""
    import uvicorn

    from rag_fti.inference import ServedModel
    from rag_fti.inference.model_pool import ModelPool
    from serving.app import create_app
    from serving.server import address_of, listen, server_config
    from serving.services import build_services

    class Kept(ServedModel):
        def close(self) -> None:
            """The generator is used again."""

    pool = ModelPool(settings, retriever=retriever, opener=lambda *_: Kept(generator))
    services = build_services(settings, store=retriever.store, retriever=retriever, pool=pool)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(create_app(settings, services), settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def drive_apart(url: str, *, streams: int, requests: int) -> dict[str, Any]:
    """Send requests from a process of its own, as clients do."""
    made = subprocess.run(
        [
            *(sys.executable, __file__, "--client", url),
            *("--streams", str(streams), "--requests", str(requests)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, Any] = json.loads(made.stdout)
    return result


async def drive(url: str, streams: int, requests: int) -> dict[str, Any]:
    """The clients: each sends its next request when its last one is answered."""
    import httpx

    questions = iter(questions_of(requests))
    seconds: list[float] = []
    first: list[float] = []
    tokens = 0

    async def client(session: httpx.AsyncClient) -> None:
        nonlocal tokens
        for question in questions:
            body = {
                "messages": [{"role": "user", "content": question}],
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            started = time.perf_counter()
            seen = None
            async with session.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200, await response.aread()
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    if (
                        seen is None
                        and event["choices"]
                        and event["choices"][0]["delta"].get("content")
                    ):
                        seen = time.perf_counter() - started
                    if event.get("usage"):
                        tokens += event["usage"]["completion_tokens"]
            seconds.append(time.perf_counter() - started)
            first.append(seen or seconds[-1])

    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as session:
        started = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(streams)))
        wall = time.perf_counter() - started
        metrics = (await session.get("/metrics")).text
    spread = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else seconds * 99
    return {
        "requests": len(seconds),
        "tokens_per_second": round(tokens / wall, 1),
        "requests_per_second": round(len(seconds) / wall, 2),
        "p50_ms": round(1000 * spread[49], 2),
        "p95_ms": round(1000 * spread[94], 2),
        "p99_ms": round(1000 * spread[98], 2),
        "first_token_p50_ms": round(1000 * statistics.median(first), 2),
        "parts_ms": {"retrieval_mean": mean_of(metrics, "rag_fti_retrieval_seconds")},
    }


def mean_of(metrics: str, name: str) -> float:
    """Mean of a histogram since the server started, in milliseconds."""
    values = dict(
        line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith(name + "_")
    )
    count = float(values.get(f"{name}_count", 0))
    return round(1000 * float(values[f"{name}_sum"]) / count, 2) if count else 0.0


def questions_of(count: int) -> Iterator[str]:
    """The same questions every time."""
    import random

    source = random.Random(7)
    for number in range(count):
        yield " ".join(source.choices(WORDS, k=QUESTION_WORDS)) + f" {number}?"


def note(text: str) -> None:
    """Say where the run is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
