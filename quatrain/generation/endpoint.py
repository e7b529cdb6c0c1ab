"""A model behind an OpenAI-compatible address, used like an engine: `generate`, `chat` and `score`.

    model = Endpoint.of("http://localhost:8000/v1#my-model")
    model.chat([[{"role": "user", "content": "Hello"}]], SamplingParams(max_new_tokens=50))

Verbs take such an address where they take a model's folder (`open_model`). The protocol is OpenAI's
(platform.openai.com/docs/api-reference): chat completions, completions, and the list of models. Quatrain's own server,
vLLM, llama.cpp and Ollama speak it.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from quatrain.core.errors import InputError, OfflineError, QuatrainError
from quatrain.core.offline import offline
from quatrain.core.wording import format_value
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.generation.requests import Completion
from quatrain.generation.scoring import CompletionScore

KEY = "QUATRAIN_API_KEY"
"""The environment variable with the key of the endpoint that a command names."""
OPENAI_KEY, OPENAI_HOST = "OPENAI_API_KEY", "api.openai.com"
"""OpenAI's own variable; its key is sent to OpenAI alone."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Hosts that are reached without a network."""
MAX_RESPONSE = 64 * 1024 * 1024
"""The most bytes of one response that are read."""
LONGEST_PAUSE = 60.0
"""The longest pause before another try, in seconds, whatever the endpoint asks for."""
SHOWN = 300
"""Characters of an endpoint's own message that an error repeats."""

_NAMES = {
    **{"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "num_return_sequences": "n"},
    **{"regex": "guided_regex", "grammar": "guided_grammar", "choice": "guided_choice"},
}
"""Fields of SamplingParams that have another name in requests; those after `n` are vLLM's."""
_ALWAYS = ("max_new_tokens", "temperature")
_LOCAL = ("logprobs", "logprobs_mode", "json_schema", "logits_processors")
"""Fields that are not sent under their own name."""

Result = TypeVar("Result")


class CompletionModel(Protocol):
    """What completes prompts: an `Engine` or an `Endpoint`, by the same calls and with the same results."""

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | None = None
    ) -> list[Completion]:
        """A completion for each prompt, in their order."""

    def chat(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], params: SamplingParams | None = None
    ) -> list[Completion]:
        """The assistant's next turn in each conversation."""

    def score(
        self, prompts: Sequence[str | Sequence[int]], completions: Sequence[str | Sequence[int]]
    ) -> list[CompletionScore]:
        """How likely each given completion is after its prompt."""


class PromptTooLong(InputError):
    """A prompt and its completion do not fit into the context of an endpoint's model."""


@dataclass
class Usage:
    """What an endpoint has counted: requests that were answered, tokens read and tokens written."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class EndpointMessage:
    """A message of the assistant in OpenAI's form, why it ended, and the tokens that it read and wrote."""

    message: dict[str, Any]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Endpoint:
    """A model behind an OpenAI-compatible address.

    `url` is the base, such as "http://localhost:8000/v1"; `name` the model's name there (None: the only one). `key` is
    sent as a bearer token; by default it is that of the variable QUATRAIN_API_KEY, or for api.openai.com
    OPENAI_API_KEY. A request may take `timeout` seconds; at most `concurrency` run at once. A request is tried `tries`
    times in all, with growing pauses, where the endpoint is busy (429), fails (5xx) or cannot be reached.

    Completions carry log-probabilities where the endpoint gives them, and no token ids. Errors: InputError for what the
    endpoint refuses, `PromptTooLong` for a full context, OfflineError where nothing answers, QuatrainError for an
    endpoint that keeps failing.
    """

    url: str
    name: str | None = None
    key: str | None = field(default=None, repr=False)
    timeout: float = 600.0
    tries: int = 5
    concurrency: int = 8
    pause: Callable[[float], None] = field(default_factory=lambda: time.sleep, repr=False)
    usage: Usage = field(default_factory=Usage, init=False)

    def __post_init__(self) -> None:
        address = urllib.parse.urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(
                f"endpoint {format_value(self.url)}: give an address such as http://localhost:8000/v1#NAME"
            )
        if address.query or address.fragment or address.username:
            raise InputError(
                f"endpoint {address.hostname}: the address has a query, a fragment or a user; give "
                f"{address.scheme}://HOST/v1#NAME, and a key in the environment variable {KEY}"
            )
        if self.tries < 1 or self.concurrency < 1 or self.timeout <= 0:
            raise InputError("endpoint: tries and concurrency must be at least 1, timeout above 0")
        self.url = self.url.rstrip("/")
        if self.key is None:
            self.key = os.environ.get(KEY) or None
            if self.key is None and (address.scheme, address.hostname) == ("https", OPENAI_HOST):
                self.key = os.environ.get(OPENAI_KEY) or None
        if offline() and address.hostname not in LOCAL_HOSTS:
            raise OfflineError(f"{self.url} needs the network, which QUATRAIN_OFFLINE forbids.")
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._lock = threading.Lock()
        self._about: dict[str, Any] | None = None
        self._gives_logprobs, self._limit_name = True, "max_tokens"

    @classmethod
    def of(cls, address: str, **options: Any) -> Endpoint:
        """The endpoint of "http://HOST/v1#NAME"; without #NAME its only model. `options` as for the class."""
        url, _, name = address.partition("#")
        return cls(url, urllib.parse.unquote(name) or None, **options)

    @property
    def model_name(self) -> str:
        """The model's name in requests. Raises InputError where the endpoint has several and none is named."""
        return self.name or str(self.about["id"])

    @property
    def context_length(self) -> int | None:
        """The most tokens of a prompt and its completion; None where the endpoint does not tell (`max_model_len`)."""
        length = self.about.get("max_model_len")
        return length if isinstance(length, int) else None

    @property
    def about(self) -> dict[str, Any]:
        """What the endpoint's list of models says of the model; only its name where the endpoint has no list."""
        if self._about is None:
            listed = self._models()
            names = [str(each["id"]) for each in listed]
            if self.name is None and len(names) != 1:
                known = f"has {', '.join(names[:20])}" if names else "lists no models"
                raise InputError(f"{self.url} {known}; name one as {self.url}#NAME")
            own = [each for each in listed if self.name in (None, each["id"])]
            self._about = own[0] if own else {"id": self.name}
        return self._about

    def _models(self) -> list[dict[str, Any]]:
        try:
            listed = self._request("/models", None).get("data")
        except (InputError, QuatrainError):
            if self.name is None:
                raise
            return []  # Some endpoints have no list.
        rows = listed if isinstance(listed, list) else []
        return [each for each in rows if isinstance(each, dict) and isinstance(each.get("id"), str)]

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | None = None,
        *,
        skip_long: bool = False,
    ) -> list[Completion]:
        """A completion for each prompt, a text or a list of the model's token ids, in their order.

        With `skip_long` a prompt that does not fit into the context has an empty completion, cut by "length".
        """
        params, name = params or SamplingParams(), self.model_name
        forms = [{"model": name, "prompt": each if isinstance(each, str) else list(each)} for each in prompts]
        return self._together(lambda form: self._complete("/completions", form, params, skip_long), forms)

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | None = None,
        *,
        skip_long: bool = False,
    ) -> list[Completion]:
        """The assistant's next turn in each conversation, a list of {"role", "content"} messages.

        `skip_long` as for `generate`.
        """
        params, name = params or SamplingParams(), self.model_name
        forms = [{"model": name, "messages": [dict(message) for message in each]} for each in conversations]
        return self._together(lambda form: self._complete("/chat/completions", form, params, skip_long), forms)

    def message(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> EndpointMessage:
        """The assistant's next message in one conversation, with its calls of tools in OpenAI's form."""
        form: dict[str, Any] = {"model": self.model_name, "messages": [dict(each) for each in messages]}
        form |= {"tools": [dict(each) for each in tools]} if tools else {}
        answer = self._answer("/chat/completions", form, params or SamplingParams(), logprobs=False)
        choice = _choices(answer, self.url)[0]
        message, counts = choice.get("message"), answer.get("usage")
        if not isinstance(message, dict):
            raise InputError(f"{self.url} does not answer with a message: {format_value(choice, SHOWN)}")
        counts = counts if isinstance(counts, dict) else {}
        used = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, completion = (count if isinstance(count, int) else 0 for count in used)
        return EndpointMessage(message, str(choice.get("finish_reason") or "stop"), prompt, completion)

    def score(
        self, prompts: Sequence[str | Sequence[int]], completions: Sequence[str | Sequence[int]]
    ) -> list[CompletionScore]:
        """How likely each given completion is after its prompt, without generating; both are texts.

        As `Engine.score`, prompt and completion are tokenized together, and the completion is what the prompt alone
        does not begin with. The endpoint must return the log-probabilities of prompts (`echo`), as Quatrain's server,
        vLLM and llama.cpp do; others refuse with InputError. Scores have no ids.
        """
        if len(prompts) != len(completions):
            raise InputError(f"completions: {len(completions)} for {len(prompts)} prompts; give one for each.")
        problems = []
        for number, pair in enumerate(zip(prompts, completions, strict=True), 1):
            if not all(isinstance(each, str) and each for each in pair):
                problems.append(f"prompt {number}: an endpoint scores texts that are not empty")
        if problems:
            raise InputError("These completions cannot be scored by an endpoint:", problems)
        wholes = [f"{prompt}{completion}" for prompt, completion in zip(prompts, completions, strict=True)]
        distinct = list(dict.fromkeys([*map(str, prompts), *wholes]))
        echoed = dict(zip(distinct, self._together(self._echo, distinct), strict=True))
        return [
            _scored(echoed[str(prompt)], echoed[whole], number)
            for number, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True), 1)
        ]

    def count_tokens(self, prompt: str | Sequence[Mapping[str, Any]]) -> int | None:
        """How many tokens the model reads for a text or a conversation; None where the endpoint does not tell.

        Quatrain's server and vLLM tell it (`/tokenize` beside `/v1`).
        """
        form: dict[str, Any] = {"model": self.model_name}
        form |= {"prompt": prompt} if isinstance(prompt, str) else {"messages": [dict(each) for each in prompt]}
        try:
            count = self._request("/tokenize", form, base=self.url.removesuffix("/v1")).get("count")
        except PromptTooLong:
            raise
        except QuatrainError:
            return None
        return count if isinstance(count, int) else None

    def _echo(self, text: str) -> _Echo:
        form = {"model": self.model_name, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True}
        answer = self._request("/completions", form | {"logprobs": 1})
        count = (answer.get("usage") or {}).get("prompt_tokens")
        found = _choices(answer, self.url)[0].get("logprobs") or {}
        names = ("tokens", "token_logprobs", "top_logprobs")
        if not isinstance(count, int) or not all(isinstance(found.get(name), list) for name in names):
            raise InputError(f"{self.url} does not give the log-probabilities of a prompt, so it cannot score texts.")
        tokens, logprobs, top = (found[name][:count] for name in names)
        if len(tokens) != count or not all(map(str.__instancecheck__, tokens)):
            raise InputError(f"{self.url} gave {len(tokens)} log-probabilities for a prompt of {count} tokens.")
        return _Echo(tokens, logprobs, [max(each.values()) if each else None for each in top])

    def _complete(self, path: str, form: dict[str, Any], params: SamplingParams, skip_long: bool) -> Completion:
        try:
            answer = self._answer(path, form, params, logprobs=True)
        except PromptTooLong:
            if skip_long:
                return Completion("", [], "length", [])
            raise
        first, *others = (_completion(choice, self.url) for choice in _choices(answer, self.url))
        first.alternatives = others
        return first

    def _answer(self, path: str, form: dict[str, Any], params: SamplingParams, *, logprobs: bool) -> dict[str, Any]:
        """What the endpoint answers to a form with these parameters, in the words that this endpoint knows."""
        is_chat = path.startswith("/chat")
        asked = fields_of(params)
        while True:
            gives, limit_name = logprobs and self._gives_logprobs and params.num_beams == 1, self._limit_name
            body = form | asked
            body[limit_name] = body.pop("max_tokens")
            if gives:
                top = params.logprobs or 0
                body |= {"logprobs": True} | ({"top_logprobs": top} if top else {}) if is_chat else {"logprobs": top}
            try:
                return self._request(path, body)
            except PromptTooLong:
                raise
            except InputError as error:
                # Some models refuse log-probabilities, others want the limit under its newer name.
                if gives and "logprobs" in str(error):
                    self._gives_logprobs = False
                elif limit_name == "max_tokens" and "max_completion_tokens" in str(error):
                    self._limit_name = "max_completion_tokens"
                else:
                    raise

    def _together(self, call: Callable[[Any], Result], forms: Sequence[Any]) -> list[Result]:
        """The results of requests that run at once, in their order. The first error ends those that wait."""
        pool = ThreadPoolExecutor(max(1, min(self.concurrency, len(forms))), "endpoint")
        try:
            return list(pool.map(call, forms))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, path: str, form: dict[str, Any] | None, *, base: str | None = None) -> dict[str, Any]:
        """The object that the endpoint answers; a form is posted. Raises as the class says."""
        url, fault = (self.url if base is None else base) + path, ""
        for attempt in range(self.tries):
            wait = 0.0
            try:
                answer = self._send(url, form)
                break
            except urllib.error.HTTPError as error:
                status, message, code = error.code, *_message(error)
                if status not in (408, 409, 429) and status < 500:
                    raise self._refusal(status, message, code) from None
                fault, wait = f"status {status}: {message}", _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                fault = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt + 1 < self.tries:
                growing = min(0.5 * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1.25)
                self.pause(min(max(wait, growing), LONGEST_PAUSE))
        else:
            tried = f"(tried {self.tries} times)" if self.tries > 1 else ""
            if fault.startswith("status"):
                raise QuatrainError(f"{self.url} keeps failing {tried}: {fault}")
            raise OfflineError(f"Nothing answers at {self.url} {tried}: {fault}. Is the server running?")
        with self._lock:
            self.usage.requests += 1
            counts = answer.get("usage")
            for name in ("prompt_tokens", "completion_tokens"):
                count = counts.get(name) if isinstance(counts, dict) else None
                setattr(self.usage, name, getattr(self.usage, name) + (count if isinstance(count, int) else 0))
        return answer

    def _send(self, url: str, form: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Accept": "application/json", "User-Agent": "quatrain"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        data = None
        if form is not None:
            data, headers["Content-Type"] = json.dumps(form).encode(), "application/json"
        request = urllib.request.Request(url, data, headers)
        with self._opener.open(request, timeout=self.timeout) as response:
            content = response.read(MAX_RESPONSE + 1)
        if len(content) > MAX_RESPONSE:
            raise QuatrainError(f"{self.url}: the answer is larger than the {MAX_RESPONSE:,} bytes that are read.")
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            shown = content[:60].decode("utf-8", "replace")
            raise InputError(f"{url} does not answer with JSON but with {shown!r}. Is it an OpenAI-compatible address?")
        return answer

    def _refusal(self, status: int, message: str, code: str) -> InputError:
        if 300 <= status < 400:
            return InputError(f"{self.url} points elsewhere (status {status}); give the address itself. {message}")
        if status in (401, 403):
            return InputError(f"{self.url} refuses the key (status {status}); set {KEY}. It says: {message}")
        if code == "context_length_exceeded" or "context length" in message or "context size" in message:
            return PromptTooLong(f"{self.url}: {message}")
        if status == 404:
            hint = f"an address mostly ends in /v1, and #NAME is the model's name (here {self.name})"
            return InputError(f"{self.url} does not know this model or address; {hint}. It says: {message}")
        return InputError(f"{self.url} refuses the request (status {status}): {message}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """No redirects: the key would be sent to whatever address the endpoint names."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class _Echo:
    """The tokens of a text with their log-probabilities and the likeliest log-probability at each place."""

    tokens: list[str]
    logprobs: list[float | None]
    best: list[float | None]


def is_endpoint(model: object) -> bool:
    """Whether a model is named by an address."""
    return isinstance(model, str) and model.startswith(("http://", "https://"))


def open_model(model: str | Path, **options: Any) -> Engine | Endpoint:
    """The engine of a model folder, hub id or run, or the endpoint of an address "http://HOST/v1#NAME".

    `options` as for `Engine.load`. Raises InputError for options with an address.
    """
    if not is_endpoint(model):
        return Engine.load(model, **options)
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(f"{model}: an endpoint loads its model itself; leave out {', '.join(given)}")
    return Endpoint.of(str(model))


def fields_of(params: SamplingParams) -> dict[str, Any]:
    """The fields of a request: OpenAI's, and beyond those the ones that differ from the defaults.

    Raises InputError for what only an engine can do.
    """
    problems, defaults, form = [], SamplingParams(), dict[str, Any]()
    if params.logits_processors:
        problems.append("logits_processors: functions cannot be sent")
    if params.logprobs_mode != "raw":
        problems.append(f"logprobs_mode: {params.logprobs_mode}; an endpoint gives those of the model itself")
    for name, words in (("bad_words", params.bad_words), ("force_words", params.force_words)):
        if not all(isinstance(word, str) for word in words):
            problems.append(f"{name}: an endpoint takes texts, no token ids")
    if isinstance(params.negative_prompt, tuple):
        problems.append("negative_prompt: an endpoint takes a text, no token ids")
    if params.num_beams > 1 and params.num_return_sequences > 1:
        problems.append("num_return_sequences: an endpoint returns the best text of a beam search alone")
    if problems:
        raise InputError("These sampling parameters cannot be sent to an endpoint:", problems)
    for each in fields(params):
        value = getattr(params, each.name)
        if each.name not in _LOCAL and (each.name in _ALWAYS or value != getattr(defaults, each.name)):
            form[_NAMES.get(each.name, each.name)] = list(value) if isinstance(value, tuple) else value
    if params.logit_bias:
        form["logit_bias"] = {str(token): value for token, value in params.logit_bias}
    if params.json_schema is not None:
        schema = {"name": "answer", "schema": json.loads(params.json_schema), "strict": True}
        form["response_format"] = {"type": "json_schema", "json_schema": schema}
    return form


def _choices(answer: dict[str, Any], url: str) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(each, dict) for each in choices):
        raise InputError(f"{url} does not answer with completions: {format_value(answer, SHOWN)}")
    return sorted(choices, key=lambda each: each["index"] if isinstance(each.get("index"), int) else 0)


def _completion(choice: dict[str, Any], url: str) -> Completion:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if text is not None and not isinstance(text, str):
        raise InputError(f"{url} does not answer with a text: {format_value(choice, SHOWN)}")
    reason = choice.get("finish_reason")
    reason = reason if isinstance(reason, str) and reason != "tool_calls" else "stop"
    return Completion(text or "", [], reason, list(_logprobs_of(choice.get("logprobs"))))


def _logprobs_of(found: Any) -> Iterator[float]:
    """The log-probabilities of a choice, in the form of chats or of texts."""
    rows = found if isinstance(found, dict) else {}
    content = rows.get("content")
    values = rows.get("token_logprobs")
    if isinstance(content, list):
        values = [each.get("logprob") for each in content if isinstance(each, dict)]
    yield from (float(each) for each in values or () if isinstance(each, int | float))


def _scored(prompt: _Echo, whole: _Echo, number: int) -> CompletionScore:
    """The score of what a text has beyond its prompt."""
    shared, most = 0, min(len(prompt.tokens), len(whole.tokens))
    while shared < most and prompt.tokens[shared] == whole.tokens[shared]:
        shared += 1
    start = max(shared, 1)
    logprobs, best = whole.logprobs[start:], whole.best[start:]
    known = [each for each in logprobs if each is not None]
    if not known or len(known) != len(logprobs):
        raise InputError(f"prompt {number}: the endpoint gives no log-probability for a token of the completion")
    greedy = all(top is None or value >= top for value, top in zip(known, best, strict=True))
    return CompletionScore([], known, greedy)


def _message(error: urllib.error.HTTPError) -> tuple[str, str]:
    """What the body of an error says, and its code."""
    try:
        content = error.read(65536).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        content = ""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    found = found.get("error", found) if isinstance(found, dict) else None
    found = found if isinstance(found, dict) else {"message": found or content}
    message = str(found.get("message") or error.reason or "")
    return " ".join(message.split())[:SHOWN] or "nothing", str(found.get("code") or "")


def _seconds(text: str | None) -> float:
    """The seconds of a Retry-After header; 0 for a date, or where there is none."""
    return float(text) if text and text.strip().replace(".", "", 1).isdigit() else 0.0
