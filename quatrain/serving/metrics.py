"""Prometheus metrics under the names of vLLM, which its dashboards read."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SHORT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_LONG = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """The metrics of one server; every one has the label `model_name`. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.running = self._gauge("num_requests_running", "Completions that are generated now.")
        self.waiting = self._gauge("num_requests_waiting", "Completions that wait.")
        self.cache_bytes = self._gauge("kv_cache_bytes", "Bytes of the key-value cache.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self.prefix_queries = self._counter("prefix_cache_queries", "Tokens of prompts that were looked up.")
        self.prefix_hits = self._counter("prefix_cache_hits", "Tokens of prompts that were still in the cache.")
        self.success = Counter(
            "vllm:request_success", "Finished completions.", ["model_name", "finished_reason"], registry=self._registry
        )
        self.first_token = self._histogram("time_to_first_token_seconds", "Time to the first token.", _SHORT)
        self.inter_token = self._histogram("inter_token_latency_seconds", "Time between two tokens.", _SHORT)
        self.per_token = self._histogram("request_time_per_output_token_seconds", "Mean time of a token.", _SHORT)
        self.end_to_end = self._histogram("e2e_request_latency_seconds", "Time of a whole completion.", _LONG)
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _COUNTS)
        self.request_tokens = self._histogram("request_generation_tokens", "Tokens of a completion.", _COUNTS)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"vllm:{name}", text, ["model_name"], registry=self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, ["model_name"], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Any) -> Histogram:
        return Histogram(f"vllm:{name}", text, ["model_name"], buckets=buckets, registry=self._registry)

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)
