"""What the protocols share: bodies read within limits, and the options of sampling."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from quatrain.core.errors import InputError
from quatrain.core.reading import decode, parse_json
from quatrain.core.wording import format_value
from quatrain.serving.conversation import Sampling, Service
from quatrain.serving.errors import ApiError

SMALL = 64 * 1024
"""Bodies up to this many bytes are parsed at once, larger ones in a thread."""
MAX_STOP = 16
MAX_STOP_LENGTH = 1000


class Form(BaseModel):
    """A request's form: numbers are finite, fields that nobody knows are ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


F = TypeVar("F", bound=BaseModel)


def service_of(request: Request) -> Service:
    """The service of the application that got a request."""
    service: Service = request.app.state.service
    return service


async def read_body(request: Request, form: type[F]) -> F:
    """The body of a request as a form. Raises ApiError for one that is too large, slow, deep, or not of the form."""
    settings = service_of(request).settings
    content = bytearray()
    try:
        declared = int(request.headers.get("content-length") or 0)
    except ValueError:
        declared = 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            if declared <= settings.max_body:
                async for part in request.stream():
                    content += part
                    if len(content) > settings.max_body:
                        break
    except TimeoutError as error:
        raise ApiError(408, f"The body did not arrive within {settings.body_seconds:g} s.") from error
    except ClientDisconnect as error:
        raise ApiError(400, "The client left before the body was complete.") from error
    if declared > settings.max_body or len(content) > settings.max_body:
        raise ApiError(
            413, f"The body is larger than the {settings.max_body:,} bytes that are read.",
            headers={"Connection": "close"},
        )  # fmt: skip
    if len(content) <= SMALL:
        return parse_body(bytes(content), form)
    return await asyncio.to_thread(parse_body, bytes(content), form)


def parse_body(content: bytes, form: type[F]) -> F:
    """The form in a JSON text. Raises ApiError with every wrong field."""
    try:
        value = parse_json(decode(content, "the body"), "the body", dict)
    except InputError as error:
        raise ApiError(400, str(error), code="invalid_json") from error
    return validated(value, form)


def validated(value: Any, form: type[F]) -> F:
    """A value as a form. Raises ApiError with every wrong field."""
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise ApiError(400, _described(error), param=_place(error.errors()[0]["loc"]) or None) from error


def _described(error: ValidationError) -> str:
    wrong = error.errors(include_url=False, include_context=False)
    problems = [f"{_place(each['loc'])}: {format_value(each['input'], 60)}: {each['msg']}" for each in wrong[:10]]
    more = f" (and {len(wrong) - 10} more)" if len(wrong) > 10 else ""
    return "; ".join(problems) + more


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:60] for part in loc)


class SamplingForm(Form):
    """The options of sampling that OpenAI's protocols have, vLLM's further ones, and the rest of SamplingParams."""

    model: str | None = None
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    top_h: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    num_beams: int | None = Field(None, ge=1)
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    num_beam_groups: int | None = None
    diversity_penalty: float | None = None
    force_words: list[str] | None = None
    penalty_alpha: float | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None

    def sampling(self, max_tokens: int | None) -> Sampling:
        """The options as fields of SamplingParams. Raises ApiError."""
        names = (
            *("temperature", "top_p", "min_p", "typical_p", "seed", "frequency_penalty", "presence_penalty"),
            *("repetition_penalty", "no_repeat_ngram_size", "logit_bias", "ignore_eos", "bad_words", "stop_token_ids"),
            *("top_h", "epsilon_cutoff", "eta_cutoff", "num_beams", "length_penalty", "early_stopping"),
            *("num_beam_groups", "diversity_penalty", "force_words", "penalty_alpha", "guidance_scale"),
            "negative_prompt",
        )
        fields = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.top_k is not None and self.top_k not in (0, -1):
            fields["top_k"] = self.top_k
        if self.min_tokens is not None:
            fields["min_new_tokens"] = self.min_tokens
        if stop := checked_stop(self.stop):
            fields["stop"] = stop
        constraint = self._constraint()
        return Sampling(fields | constraint, max_tokens, self.n or 1, token_ids=bool(self.return_token_ids))

    def _constraint(self) -> dict[str, Any]:
        """The constraint on the text, from any of the fields that may hold one."""
        given = {
            "json_schema": self.guided_json, "regex": self.guided_regex, "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }  # fmt: skip
        names = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
        for name, value in (self.structured_outputs or {}).items():
            if name in names:
                given[names[name]] = value
        given = {name: value for name, value in given.items() if value is not None}
        if self.response_format is not None:
            given |= response_format_fields(self.response_format)
        return given


def checked_stop(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop strings. Raises ApiError for too many or too long ones."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOP or any(len(string) > MAX_STOP_LENGTH for string in strings):
        raise ApiError(
            400, f"stop: at most {MAX_STOP} strings of {MAX_STOP_LENGTH:,} characters are allowed.", param="stop"
        )
    return strings


def response_format_fields(format: dict[str, Any]) -> dict[str, Any]:
    """The constraint of a `response_format`. Raises ApiError for a kind that is not known."""
    kind = format.get("type")
    if kind in (None, "text"):
        return {}
    if kind == "json_object":
        # huggingface_hub sends the schema of a json_schema in this way.
        value = format.get("value")
        return {"json_schema": value if isinstance(value, dict) else {"type": "object"}}
    if kind == "json_schema":
        nested = format.get("json_schema")
        schema = (nested if isinstance(nested, dict) else format).get("schema")
        if isinstance(schema, dict):
            return {"json_schema": schema}
        raise ApiError(400, "response_format.json_schema.schema: must be a JSON schema.", param="response_format")
    raise ApiError(
        400,
        f"response_format.type: {format_value(kind, 60)}; must be text, json_object or json_schema.",
        param="response_format",
    )


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}{secrets.token_hex(12)}"
