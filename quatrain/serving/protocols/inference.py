"""Hugging Face's inference form: {"inputs", "parameters"} for every pipeline, as `InferenceClient(model=URL)` sends it.

The forms are those of huggingface.co/docs/inference-providers, and of Text Generation Inference for text generation.
A task that the address does not name follows from the model's head and the input.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from pydantic import ConfigDict

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.generation.engine import Engine
from quatrain.serving.conversation import Event, Run, Sampling, Service, TextJob
from quatrain.serving.errors import ApiError
from quatrain.serving.models import Loaded
from quatrain.serving.protocols.common import Form
from quatrain.serving.protocols.events import EventStream, Json, sse, unless_gone
from quatrain.tasks.pipelines import Pipeline, pipeline_class, task_of_head
from quatrain.tasks.pipelines.generating import GeneratingPipeline
from quatrain.tasks.pipelines.subject import reads_of

TEXT_KEYS = ("generated_text", "summary_text", "translation_text")
"""The keys of texts by the tasks of encoder-decoders. An address that names no task is answered with all of them."""
RENAMED = {"dimensions": "truncate_dim"}
"""Parameters of the form, and the options of pipelines that they are."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "watermark": (False,), "top_n_tokens": (0,), "truncate": (False, True),
    "truncation_direction": ("right", "Right"), "encoding_format": ("float",), "padding": ("do_not_pad",),
    "decoder_input_details": (False,), "use_cache": (True, False), "wait_for_model": (True, False),
}  # fmt: skip
"""Parameters that no pipeline has, and their values that change nothing."""
FINISHED = {"stop": "eos_token", "length": "length"}
"""Our reasons for the end of a completion, and theirs."""


class InferenceForm(Form):
    """A request; some tasks send their parameters beside the inputs."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    inputs: Any
    parameters: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    stream: bool | None = None

    def given(self) -> dict[str, Any]:
        """All parameters, under the names of pipelines. Raises ApiError for those that are not supported."""
        values = {**(self.model_extra or {}), **(self.parameters or {})}
        values |= values.pop("generate_parameters", None) or {}
        values.pop("model", None)
        values = {RENAMED.get(name, name): value for name, value in values.items() if value is not None}
        for name, allowed in NEUTRAL.items():
            if name in values and values.pop(name) not in allowed:
                raise ApiError(400, f"{name}: not supported; leave it out.", param=name)
        return values


def task_for(config: Any, form: InferenceForm, given: Mapping[str, Any]) -> str:
    """The task of a request whose address names none, to a model of this configuration."""
    first = form.inputs[0] if isinstance(form.inputs, list) and form.inputs else form.inputs
    fields = set(first) if isinstance(first, Mapping) else set()
    if "candidate_labels" in given:
        return "zero-shot-classification"
    if "source_sentence" in fields:
        return "sentence-similarity"
    if fields & {"table", "query"}:
        return "table-question-answering"
    return task_of_head(config.head, reads_of({"model_type": config.family}))


async def answer(service: Service, form: InferenceForm, request: Any, model: str | None, task: str | None) -> Any:
    """The response to a request."""
    given = form.given()
    if not isinstance(form.inputs, str | list | Mapping):
        raise ApiError(
            400, f"inputs: {format_value(form.inputs, 60)}; must be a text, an object or a list.", param="inputs"
        )
    async with AsyncExitStack() as stack:
        loaded, adapter = await stack.enter_async_context(service.registry.use(model))
        name = task or task_for(loaded.model.config, form, given)
        if name == "feature-extraction" and loaded.model.config.head == "embedding":
            name = "sentence-embeddings"
        pipe: Any = await service.in_thread(loaded.pipeline, name)
        if problem := pipe.refusal(form.inputs, given):
            raise ApiError(400, problem, param="inputs")
        given = _renamed(pipe, given)
        if isinstance(pipe, GeneratingPipeline):
            generation = Generation(service, pipe, form, given, adapter or model, named=task is not None)
            if form.stream:
                await service.in_thread(generation.prepare)
                return EventStream(generation.stream(), service.settings, lambda error: sse(error.inference_body()))
            return Json(await unless_gone(request, generation.whole()))
        return Json(await unless_gone(request, service.in_thread(_predicted, loaded, pipe, form.inputs, given)))


def _renamed(pipe: Pipeline, given: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the server's defaults of the task. Raises ApiError for those that the task does not have."""
    known = pipe.Options.model_fields
    more = {"details", "grammar", "adapter_id"} if isinstance(pipe, GeneratingPipeline) else set()
    unknown = [name for name in given if name not in known and name not in more]
    if unknown:
        # The words by which huggingface_hub notices parameters to leave out.
        raise ApiError(
            400,
            f"The following `model_kwargs` are not used by the model: {[*unknown]} ({pipe.name} has "
            f"{', '.join(known)})",
            param=unknown[0],
        )
    return pipe.served_options() | given


def _predicted(loaded: Loaded, pipe: Pipeline, inputs: Any, given: Mapping[str, Any]) -> Any:
    """The output of a pipeline that does not generate."""
    is_list = isinstance(inputs, list) and not pipe.is_one(inputs)
    with loaded.lock:
        predictions = list(pipe.predict(inputs if is_list else [inputs], **given))
    values = [pipe.served(each.value) for each in predictions]
    return values if is_list or pipe.task == "text-classification" else values[0]


class Generation:
    """One request to a pipeline that generates, answered by the model's worker together with all other requests."""

    def __init__(
        self,
        service: Service,
        pipe: GeneratingPipeline,
        form: InferenceForm,
        given: Mapping[str, Any],
        model: str | None,
        *,
        named: bool,
    ):
        self.service, self.pipe, self.form, self.named = service, pipe, form, named
        self.given = dict(given)
        self.details = bool(self.given.pop("details", False))
        self.model = self.given.pop("adapter_id", None) or model
        self.given |= _grammar(self.given.pop("grammar", None))
        self.is_list = isinstance(form.inputs, list) and not pipe.is_one(form.inputs)
        self.inputs: list[dict[str, Any]] = []
        self.job = TextJob(self.model, [], Sampling())
        self.options: Any = None

    def prepare(self) -> None:
        """Encodes the inputs. Raises InputError and ApiError."""
        inputs = self.form.inputs if self.is_list else [self.form.inputs]
        if len(inputs) > self.service.settings.max_prompts or not inputs:
            most = self.service.settings.max_prompts
            raise ApiError(400, f"inputs: {len(inputs):,}; a request has from 1 to {most:,}.", param="inputs")
        self.options = self.pipe.settings(self.given)
        self.inputs = [self.pipe.read(each, f"input {number}") for number, each in enumerate(inputs, 1)]
        engine: Engine = self.pipe.engine
        fields = self.options.fields(engine, self.pipe.new_tokens)
        limit, count = fields.pop("max_new_tokens", None), fields.pop("num_return_sequences", None) or 1
        prompts = [self.pipe.prompt(each, self.options) for each in self.inputs]
        if self.options.truncates:
            params = self.options.params(engine, self.pipe.new_tokens)
            prompts = [engine.truncate(engine.encode(each), params) for each in prompts]
        sampling = Sampling(fields, limit, count, logprobs=0 if self.details else None, token_ids=True)
        self.job = TextJob(self.model, list(prompts), sampling)

    async def whole(self) -> Any:
        """The outputs of all inputs."""
        await self.service.in_thread(self.prepare)
        async with self.service.complete(self.job) as run:
            completions = await run.finished()
        texts = ["".join(delta.text for event in events for delta in event.deltas) for events in completions]
        count = self.job.sampling.n
        outputs = [
            self.pipe.output(each, texts[number * count : (number + 1) * count], self.options)
            for number, each in enumerate(self.inputs)
        ]
        outputs = [[self._keyed(one) for one in each] for each in outputs]
        if self.details:
            for number, each in enumerate(outputs):
                each[0]["details"] = self._details(completions[number * count], run)
        return self.pipe.several(outputs) if self.is_list else outputs[0]

    def _keyed(self, output: dict[str, Any]) -> dict[str, Any]:
        """An output with the keys of all tasks of its kind, where the address names none."""
        key = getattr(self.pipe, "key", None)
        return output if self.named or key is None else dict.fromkeys(TEXT_KEYS, output[key])

    def _details(self, events: Sequence[Event], run: Run) -> dict[str, Any]:
        tokens = [
            {"id": token.id, "text": token.text, "logprob": token.logprob, "special": False}
            for event in events for token in event.tokens
        ]  # fmt: skip
        return {
            "finish_reason": FINISHED.get(str(events[-1].finish), "eos_token"), "generated_tokens": len(tokens),
            "seed": self.job.sampling.fields.get("seed"), "prefill": [], "tokens": tokens,
            "input_length": len(run.prompt_ids[0]),
        }  # fmt: skip

    async def stream(self) -> AsyncIterator[bytes]:
        """The text of the first input, piece by piece, as Text Generation Inference sends it."""
        if len(self.inputs) > 1 or self.job.sampling.n > 1:
            raise ApiError(400, "stream: one input and one text at a time.", param="stream")
        async with self.service.complete(self.job) as run:
            index, text, count = 0, "", 0
            async for events in run.events():
                for event in events:
                    piece = "".join(delta.text for delta in event.deltas)
                    text, count = text + piece, count + len(event.ids)
                    if not piece and event.finish is None:
                        continue
                    logprob = sum(token.logprob for token in event.tokens)
                    token = {"id": event.ids[-1] if event.ids else 0, "text": piece, "logprob": logprob}
                    ended = event.finish is not None
                    (output,) = self.pipe.output(self.inputs[0], [text], self.options) if ended else (None,)
                    details = {
                        "finish_reason": FINISHED.get(str(event.finish), "eos_token"), "generated_tokens": count,
                        "seed": self.job.sampling.fields.get("seed"), "input_length": len(run.prompt_ids[0]),
                    }  # fmt: skip
                    yield sse({
                        "index": index, "token": token | {"special": False}, "top_tokens": [],
                        "generated_text": None if output is None else next(iter(output.values())),
                        "details": details if ended else None,
                    })  # fmt: skip
                    index += 1


def _grammar(grammar: Any) -> dict[str, Any]:
    """A grammar of Text Generation Inference as options."""
    if grammar is None:
        return {}
    kind = grammar.get("type") if isinstance(grammar, Mapping) else None
    if kind == "regex":
        return {"regex": grammar.get("value")}
    if kind in ("json", "json_schema"):
        value = grammar.get("value")
        return {"json_schema": value.get("schema", value) if isinstance(value, Mapping) else value}
    raise ApiError(400, "grammar: must have the type json or regex, and a value.", param="grammar")


def known_task(task: str) -> str:
    """A task of an address. Raises ApiError for an unknown one."""
    try:
        pipeline_class(task)
    except InputError as error:
        raise ApiError(404, str(error), param="task") from error
    return task
