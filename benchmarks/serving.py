"""What serving costs: added latency without load, and throughput against the bare engine.

    python benchmarks/serving.py --chunks 100000 --out serving.json
    python benchmarks/serving.py --model HuggingFaceTB/SmolLM2-135M-Instruct

All numbers of one call come from one run on one machine, side by side:

- *added latency*: everything but generation: HTTP, embedding the question, hybrid search over
  ``--chunks`` chunks, counting and packing tokens, citing, logging. Measured twice: with a model
  that answers at once, and with the real one as each request's total minus the seconds that the
  server logged for its generation. One client; no question comes twice but where it says so;
- *served*: ``--streams`` clients that each send one streamed completion after the other;
- *bare*: the very prompts that the server made, handed to transformers' ``generate_batch`` at
  once: no HTTP, no retrieval. Served and bare take turns, ``--rounds`` times, and a ratio is one
  of neighbours in time;
- *one at a time*: one client, one stream.

Without ``--model`` a random Llama of 30 million weights generates: its answers mean nothing, its
cost is that of a real one of the size. The store (see ``serving_store.py``: real texts, a sample of
real vectors, the rest drawn around them) is built in ``--store`` once and used again.
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
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
# This file's folder would hide the package ``serving``.
sys.path[0] = str(CHECKOUT)

LATENCY_REQUESTS = 200
WARM_REQUESTS = 20


def main() -> None:
    """Measure and print, or play the client."""
    arguments = parse()
    if arguments.client:
        asked = json.load(sys.stdin)
        print(json.dumps(asyncio.run(drive(arguments.client, arguments.streams, asked))))
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, default=100_000, help="chunks in the store")
    parser.add_argument("--embedded", type=int, default=2000, help="of these, really embedded")
    parser.add_argument("--store", type=Path, help="where the store is kept; default build/…")
    parser.add_argument("--streams", type=int, default=16, help="concurrent clients")
    parser.add_argument("--requests", type=int, default=64, help="completions per measurement")
    parser.add_argument("--rounds", type=int, default=2, help="times that served and bare run")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--context", type=int, default=400, help="token budget of the passages")
    parser.add_argument("--model", default="", help="base model; empty: a random Llama")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("overrides", nargs="*", help="settings such as embedder.backend=openvino")
    parser.add_argument("--client", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, in one process over one store."""
    import torch

    from benchmarks import serving_store
    from rag_fti.config import load_settings
    from rag_fti.models.causal import load_causal_lm, load_tokenizer
    from rag_fti.models.embedder import build_embedder
    from rag_fti.models.local import LocalGenerator
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
        overrides=arguments.overrides,
        environment={},
    )
    embedder = build_embedder(settings.embedder)
    started = time.perf_counter()
    store, facts = serving_store.opened(
        arguments.store or CHECKOUT / "build" / f"serving-{arguments.chunks}",
        embedder,
        chunks=arguments.chunks,
        embedded=arguments.embedded,
        index=settings.index,
    )
    note(f"{facts} ready in {time.perf_counter() - started:.0f} s")
    retriever = build_retriever(settings, store=store, embedder=embedder)
    location = base_model(folder, arguments.model)
    model = load_causal_lm(location, device="cpu", dtype=torch.float32)
    tokenizer = load_tokenizer(location)
    generator = LocalGenerator(
        model=model, tokenizer=tokenizer, name="benchmark", max_batch=arguments.streams
    )
    questions = serving_store.questions()
    fresh = iter(questions[arguments.requests :])
    asked = questions[: arguments.requests]
    instant = Instant(generator)
    result: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "threads": arguments.threads},
        "store": vars(facts),
        "search": vars(store.search_policy()),
        "model": arguments.model or "random Llama",
        "batching": generator.batching,
        "added_latency": added_latency(settings, retriever, instant, fresh),
    }
    note(f"added latency: {result['added_latency']}")
    with served(settings, retriever, instant) as (url, _):
        instant.requests.clear()
        drive_apart(url, asked, streams=1)
    prompt_ids = [prompt_of(tokenizer, request.messages) for request in instant.requests]
    result["throughput"] = throughput(
        settings, retriever, generator, model, asked, prompt_ids, fresh, arguments
    )
    generator.close()
    return result


def added_latency(
    settings: Any, retriever: Any, instant: Any, fresh: Iterator[str]
) -> dict[str, Any]:
    """One client, and a model that answers at once; then the same questions again."""
    questions = [next(fresh) for _ in range(LATENCY_REQUESTS)]
    with served(settings, retriever, instant) as (url, _):
        drive_apart(url, [next(fresh) for _ in range(WARM_REQUESTS)], streams=1)
        first = drive_apart(url, questions, streams=1)
        again = drive_apart(url, questions, streams=1)
    kept = ("requests", "p50_ms", "p95_ms", "p99_ms", "parts_ms")
    return {
        "new_questions": {key: first[key] for key in kept},
        "known_questions": {key: again[key] for key in kept},
    }


def throughput(
    settings: Any,
    retriever: Any,
    generator: Any,
    model: Any,
    asked: Sequence[str],
    prompt_ids: Sequence[list[int]],
    fresh: Iterator[str],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Tokens per second of the engine alone and behind the server, on the same prompts."""
    alone = [next(fresh) for _ in range(max(8, arguments.requests // 8))]
    bare: list[float] = []
    many: list[dict[str, Any]] = []
    single: list[dict[str, Any]] = []
    with served(settings, retriever, generator) as (url, services):
        drive_apart(url, asked[: arguments.streams], streams=arguments.streams)  # warm
        bare_engine(model, prompt_ids[: arguments.streams], arguments)  # warm

        def run_served() -> None:
            many.append(drive_apart(url, asked, streams=arguments.streams))
            wanted = sum(map(len, prompt_ids))
            if many[-1]["prompt_tokens"] != wanted:
                raise SystemExit(
                    f"Served prompts had {many[-1]['prompt_tokens']} tokens, the bare engine's "
                    f"{wanted}: they are not the same, so nothing is compared."
                )

        def run_bare() -> None:
            bare.append(bare_engine(model, prompt_ids, arguments))

        for number in range(arguments.rounds):
            pair = (run_bare, run_served) if number % 2 == 0 else (run_served, run_bare)
            for part in pair:
                part()
            note(f"round {number}: bare {bare[-1]}, served {many[-1]['tokens_per_second']}")
            single.append(drive_apart(url, alone, streams=1))
            note(f"one at a time {single[-1]['tokens_per_second']}")
        services.log.flush()
        added = beside_generation(retriever.store, single)
    return {
        "prompt_tokens_mean": round(statistics.mean(map(len, prompt_ids)), 1),
        "bare_generate_batch_tokens_per_second": bare,
        "served_tokens_per_second": [run["tokens_per_second"] for run in many],
        "one_at_a_time_tokens_per_second": [run["tokens_per_second"] for run in single],
        "served_to_generate_batch": ratios(many, bare),
        "served_to_one_at_a_time": ratios(many, [run["tokens_per_second"] for run in single]),
        "added_latency_p50_ms": round(1000 * statistics.median(added), 2),
        "served": shown(many[-1]),
        "one_at_a_time": shown(single[-1]),
    }


def ratios(many: Sequence[dict[str, Any]], other: Sequence[float]) -> dict[str, Any]:
    """Served tokens per second divided by others', round by round."""
    found = [run["tokens_per_second"] / per for run, per in zip(many, other, strict=True)]
    return {"median": round(statistics.median(found), 3), "rounds": [round(x, 3) for x in found]}


def shown(run: dict[str, Any]) -> dict[str, Any]:
    """A client's result without the single requests."""
    return {key: value for key, value in run.items() if key != "seconds_by_id"}


def beside_generation(store: Any, runs: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds of each request that were not spent generating.

    Generation is what the server logged for the very request: waiting for and running the model.
    """
    rows = store.rows("inference_log").select(["response_id", "generation_seconds"]).to_pylist()
    generating = {row["response_id"]: row["generation_seconds"] for row in rows}
    return [
        total - generating[identifier]
        for run in runs
        for identifier, total in run["seconds_by_id"].items()
    ]


def prompt_of(tokenizer: Any, messages: Any) -> list[int]:
    """Token ids of a prompt as the generator makes them."""
    from rag_fti import prompts
    from rag_fti.models.control_tokens import control_pattern, defuse

    return prompts.prompt_token_ids(tokenizer, defuse(messages, control_pattern(tokenizer)))


def bare_engine(
    model: Any, prompt_ids: Sequence[list[int]], arguments: argparse.Namespace
) -> float:
    """Tokens per second of transformers' continuous batching.

    Raises:
        RuntimeError: If a prompt was not continued.
    """
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
    config = GenerationConfig(
        max_new_tokens=arguments.tokens,
        do_sample=False,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
    )
    attention = model.config._attn_implementation
    started = time.perf_counter()
    try:
        outputs = model.generate_batch(
            inputs=list(prompt_ids),
            generation_config=config,
            continuous_batching_config=bounded,
            progress_bar=False,
        )
    finally:
        model.set_attn_implementation(attention)
    seconds = time.perf_counter() - started
    failed = [output.error for output in outputs.values() if output.error]
    if failed or len(outputs) != len(prompt_ids):
        raise RuntimeError(
            f"generate_batch continued {len(outputs)} of {len(prompt_ids)} prompts: {failed[:1]}"
        )
    return round(sum(len(o.generated_tokens) for o in outputs.values()) / seconds, 1)


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
    """Counts tokens and takes prompts like a generator, and answers at once."""

    model = "instant"

    def __init__(self, generator: Any) -> None:
        self.context_window = generator.context_window
        self.chat_template = generator.chat_template
        self.count_prompt_tokens = generator.count_prompt_tokens
        self.count_tokens = generator.count_tokens
        self.requests: list[Any] = []

    def generate(self, requests: Any) -> Any:
        """One answer per request."""
        return [list(self.stream(request))[-1] for request in requests]

    def stream(self, request: Any, cancellation: Any = None) -> Iterator[Any]:
        """One piece, then the end."""
        from rag_fti.protocols import Generation

        self.requests.append(request)
        self.count_prompt_tokens(request.messages)  # rendering the prompt is no generation
        yield "Nothing to say [1]"
        yield Generation("Nothing to say [1]", 100, 4, "stop")


@contextmanager
def served(settings: Any, retriever: Any, generator: Any) -> Iterator[tuple[str, Any]]:
    """A real server on a free port; yields its address and parts."""
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
        yield address_of(listener), services
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def drive_apart(url: str, questions: Sequence[str], *, streams: int) -> dict[str, Any]:
    """Send requests from a process of its own, as clients do."""
    made = subprocess.run(
        [sys.executable, __file__, "--client", url, "--streams", str(streams)],
        check=True,
        input=json.dumps(list(questions)),
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(made.stdout)
    return result


async def drive(url: str, streams: int, asked: Sequence[str]) -> dict[str, Any]:
    """The clients: each sends its next request when its last one is answered."""
    import httpx

    questions = iter(asked)
    by_id: dict[str, float] = {}
    first: list[float] = []
    tokens = prompt_tokens = 0

    async def client(session: httpx.AsyncClient) -> None:
        nonlocal tokens, prompt_tokens
        for question in questions:
            body = {
                "messages": [{"role": "user", "content": question}],
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            started = time.perf_counter()
            seen, identifier = None, ""
            async with session.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200, await response.aread()
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    identifier = event["id"]
                    if (
                        seen is None
                        and event["choices"]
                        and event["choices"][0]["delta"].get("content")
                    ):
                        seen = time.perf_counter() - started
                    if event.get("usage"):
                        tokens += event["usage"]["completion_tokens"]
                        prompt_tokens += event["usage"]["prompt_tokens"]
            by_id[identifier] = time.perf_counter() - started
            first.append(seen or by_id[identifier])

    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as session:
        started = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(streams)))
        wall = time.perf_counter() - started
        metrics = (await session.get("/metrics")).text
    seconds = list(by_id.values())
    spread = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else seconds * 99
    return {
        "requests": len(seconds),
        "prompt_tokens": prompt_tokens,
        "tokens_per_second": round(tokens / wall, 1),
        "requests_per_second": round(len(seconds) / wall, 2),
        "p50_ms": round(1000 * spread[49], 2),
        "p95_ms": round(1000 * spread[94], 2),
        "p99_ms": round(1000 * spread[98], 2),
        "first_token_p50_ms": round(1000 * statistics.median(first), 2),
        "parts_ms": {"retrieval_mean": mean_of(metrics, "rag_fti_retrieval_seconds")},
        "seconds_by_id": by_id,
    }


def mean_of(metrics: str, name: str) -> float:
    """Mean of a histogram since the server started, in milliseconds."""
    values = dict(
        line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith(name + "_")
    )
    count = float(values.get(f"{name}_count", 0))
    return round(1000 * float(values[f"{name}_sum"]) / count, 2) if count else 0.0


def note(text: str) -> None:
    """Say where the run is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
