"""`quatrain inspect`: shows a model's architecture, tokens, predictions, layers, attention, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from quatrain.cli.arguments import MODEL, TextArgument, read_text_argument

if TYPE_CHECKING:
    from quatrain.evaluation.inspection import Subject

PAGE, PICTURE = "attention.html", "attention.png"


def inspect(
    model: Annotated[str, MODEL],
    *,
    text: TextArgument | None = None,
    file: Path | None = None,
    next_tokens: Annotated[bool, Parameter(name="--next")] = False,
    attention: Path | None = None,
    neighbours: TextArgument | None = None,
    answer: TextArgument | None = None,
    lens: bool = False,
    attribution: bool = False,
    target: TextArgument | None = None,
    rollout: bool = False,
    induction: bool = False,
    embedding_map: Annotated[Literal["pca", "tsne", "umap"] | None, Parameter(name="--map")] = None,
    texts: Path | None = None,
    points: int = 1000,
    page: Path | None = None,
    top: int | None = None,
    truncate: bool = False,
    special_tokens: Annotated[bool, Parameter(negative="--no-special-tokens")] = True,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Inspect a model: its architecture (the default), or how it processes a text, a picture or a recording.

    Parameters
    ----------
    model
        A model folder, a run's folder, or a hub id such as org/name.
    text
        A text, whose tokens are shown, or which the other flags analyse; - reads standard input.
    file
        A picture or a recording in place of a text, for a model that reads them: where it looks, and which sound each
        word came from. With --attention it is drawn.
    next_tokens
        The predicted next tokens at each position; for an encoder, the predictions at its mask tokens.
    attention
        Write the attention maps of the text to a folder, or to a file ending in .html or .png.
    neighbours
        Show the tokens nearest to this one in the embedding; #42 names a token by its id.
    answer
        The output text of an encoder-decoder.
    lens
        The logit lens: what the model would predict if each layer were its last.
    attribution
        How much each token of the text changes the next token's probability (or a classifier's label).
    target
        The output to attribute: a token, #42 for an id, or a label. The default is the likeliest.
    rollout
        Attention rollout: which tokens can reach the last one through all layers.
    induction
        Induction heads: scores of each head on random tokens that are repeated.
    embedding_map
        A map of the vocabulary's embedding, or of --texts: pca, tsne or umap.
    texts
        A file with a text on each line, for --map.
    points
        The number of tokens on the map.
    page
        Write these views to an interactive HTML page.
    top
        The number of tokens to show; 5 for --next and --lens, 10 for --neighbours by default.
    truncate
        Cut a text that exceeds the model's context, instead of an error.
    special_tokens
        Add the special tokens that the tokenizer puts around a text.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.output import show_json
    from quatrain.core.reading import user_path

    if attention is not None:
        attention = user_path(attention, "--attention")
    views = _Views(lens, attribution, target, rollout, induction, embedding_map, texts, points, page)
    if file is not None:
        _check_file(text, next_tokens, attention, neighbours, answer, views)
        output = _file(model, user_path(file, "--file"), attention, quiet=json_lines)
    else:
        _check(text, next_tokens, attention, answer, top, views)
        asked = _Asked(text, next_tokens, attention, neighbours, answer, top)
        output = _inspected(model, asked, views, _Reading(truncate, special_tokens, quiet=json_lines))
    if json_lines:
        show_json({"model": model} | output)
    return 0


@dataclass(frozen=True)
class _Asked:
    """What is asked of a model and a text, beside the views."""

    text: str | None
    next_tokens: bool
    attention: Path | None
    neighbours: str | None
    answer: str | None
    top: int | None


@dataclass(frozen=True)
class _Reading:
    """How a text is read, and whether results are printed."""

    truncate: bool
    special_tokens: bool
    quiet: bool


def _inspected(model: str, asked: _Asked, views: _Views, reading: _Reading) -> dict[str, Any]:
    """What was asked: printed, and as values for programs."""
    from quatrain.evaluation.inspection import open_subject

    text, attention, neighbours, top = asked.text, asked.attention, asked.neighbours, asked.top
    asks_model = asked.next_tokens or attention is not None or neighbours is not None or views.asked
    need = "everything" if asks_model else "tokens" if text is not None else "architecture"
    look = _Look(open_subject(model, need), reading.truncate, reading.special_tokens, quiet=reading.quiet)
    output: dict[str, Any] = {}
    if text is None and not asks_model:
        output |= look.architecture()
    if neighbours is not None:
        output |= look.neighbours(neighbours, 10 if top is None else top)
    given = None if text is None else read_text_argument(text)
    if given is not None and (asked.next_tokens or attention is not None or not views.asked):
        output |= look.text(given, asked.answer, asked.next_tokens, attention, 5 if top is None else top)
    if views.asked:
        output |= look.views(views, given, asked.answer, top)
    return output


@dataclass(frozen=True)
class _Views:
    """The views that are asked for beside predictions and attention maps, and their options."""

    lens: bool
    attribution: bool
    target: str | None
    rollout: bool
    induction: bool
    map: str | None
    texts: Path | None
    points: int
    page: Path | None

    @property
    def asked(self) -> bool:
        return self.lens or self.attribution or self.rollout or self.induction or self.map is not None


def _check(
    text: str | None, next_tokens: bool, attention: Path | None, answer: str | None, top: int | None, views: _Views
) -> None:
    """Raises InputError for invalid flags, with all problems at once."""
    from quatrain.core.errors import InputError

    needing = {"--next": next_tokens, "--attention": attention is not None, "--answer": answer is not None}
    needing |= {"--lens": views.lens, "--attribution": views.attribution, "--rollout": views.rollout}
    problems = [f"{flag}: needs a text; add --text TEXT" for flag, given in needing.items() if given and text is None]
    if answer is not None and not (next_tokens or attention is not None or views.lens):
        problems.append("--answer: is for --next, --lens and --attention; add one of them")
    if views.target is not None and not views.attribution:
        problems.append("--target: is for --attribution; add it")
    if views.texts is not None and views.map is None:
        problems.append("--texts: is for --map; add --map pca")
    if views.points < 3:
        problems.append(f"--points {views.points}: must be at least 3")
    if views.page is not None and not views.asked:
        problems.append("--page: has no view; add --lens, --attribution, --rollout, --induction or --map")
    if views.page is not None and views.page.suffix.lower() not in (".html", ".htm"):
        problems.append(f"--page {views.page}: must end in .html")
    if top is not None and top < 1:
        problems.append(f"--top {top}: must be at least 1")
    if attention is not None and attention.suffix.lower() not in ("", ".html", ".png") and not attention.is_dir():
        problems.append(f"--attention {attention}: must be a folder, or a name that ends in .html or .png")
    if problems:
        raise InputError("The flags cannot be used:", problems)


def _check_file(
    text: str | None, next_tokens: bool, attention: Path | None, neighbours: str | None, answer: str | None,
    views: _Views,
) -> None:  # fmt: skip
    """Raises InputError for flags that a picture or a recording does not have, with all problems at once."""
    from quatrain.core.errors import InputError

    given = {"--text": text is not None, "--next": next_tokens, "--neighbours": neighbours is not None}
    given |= {"--answer": answer is not None, "--lens": views.lens, "--attribution": views.attribution}
    given |= {"--rollout": views.rollout, "--induction": views.induction, "--map": views.map is not None}
    given |= {"--page": views.page is not None}
    problems = [f"{flag}: is for texts; omit it, or --file" for flag, is_given in given.items() if is_given]
    if attention is not None and attention.suffix.lower() not in ("", ".png") and not attention.is_dir():
        problems.append(f"--attention {attention}: must be a folder, or a name that ends in .png")
    if problems:
        raise InputError("The flags cannot be used:", problems)


def _file(model: str, path: Path, out: Path | None, *, quiet: bool) -> dict[str, Any]:
    """The maps of a picture or a recording: in the terminal, and drawn."""
    from quatrain.cli.output import show
    from quatrain.core.atomic import atomic_write
    from quatrain.evaluation.inspection import open_subject
    from quatrain.evaluation.inspection.file_maps import file_maps

    maps = file_maps(open_subject(model), path)
    output = {"file": str(path), **maps.record}
    lines = list(maps.lines)
    if out is not None:
        picture = out / PICTURE if out.is_dir() or not out.suffix else out
        with atomic_write(picture, "wb") as file:
            file.write(maps.draw())
        lines += ["", f"Wrote {picture}"]
        output["attention"] = {"files": [str(picture)]}
    if not quiet:
        show("\n".join(lines))
    return output


class _Look:
    """Inspects one model; prints the results unless `quiet`, and returns them for JSON."""

    def __init__(self, subject: Subject, truncate: bool, special_tokens: bool, *, quiet: bool):
        self.subject, self.truncate, self.special_tokens, self.quiet = subject, truncate, special_tokens, quiet

    def show(self, lines: Any) -> None:
        """Show lines of text, followed by an empty line if more may follow."""
        from quatrain.cli.output import show

        if not self.quiet:
            show("\n".join(lines))

    def architecture(self) -> dict[str, Any]:
        """The module tree and the architecture choices."""
        from quatrain.evaluation.inspection import architecture, choices
        from quatrain.evaluation.inspection.unknown_family import unknown_family_lines
        from quatrain.evaluation.inspection.wording import architecture_lines
        from quatrain.planning.counts import active_parameters

        subject = self.subject
        if not subject.is_planned:
            return self._facts()
        if (unknown := subject.unknown_family) is not None:
            self.show(unknown_family_lines(unknown))
            return unknown.as_dict()
        config, dtype = subject.config, subject.dtype
        details = architecture(config, dtype=dtype, prepare=subject.prepare)
        self.show([f"{subject.name}: {config.family}, {config.architecture}, head {config.head}"])
        self.show(architecture_lines(details, width=_width()))
        notes = self._notes()
        self.show(["", *notes] if notes else [])
        weights = {"files": subject.weights.files, "bytes": subject.weights.bytes, "problem": subject.weights.problem}
        named = {"family": config.family, "architecture": config.architecture, "head": config.head}
        counts = {"parameters": details.parameters, "dtype": dtype, "bytes": details.bytes, "weights": weights}
        if config.experts is not None:
            mixture = {"num_experts": config.experts.num_experts, "per_token": config.experts.experts_per_token}
            counts["experts"] = mixture | {"active_parameters": active_parameters(config)}
        return named | counts | {"choices": choices(config), "tree": details.root.as_dict()}

    def _facts(self) -> dict[str, Any]:
        """What a classic model says of itself."""
        from quatrain.evaluation.inspection.wording import fact_lines

        facts, config = self.subject.facts(), self.subject.config
        self.show([f"{self.subject.name}: {config.family}, head {config.head}", *fact_lines(facts)])
        return {"family": config.family, "head": config.head, "facts": facts}

    def _notes(self) -> list[str]:
        """Notes, such as an adapter or missing weights."""
        subject, notes = self.subject, []
        if subject.is_adapter:
            notes.append(f"With the adapter over the model in {subject.base}.")
        if subject.weights.problem and not Path(subject.name).exists():
            notes.append("Its weights are not on this machine; they are downloaded when needed.")
        elif subject.weights.problem:
            notes.append(f"Without weights: {subject.weights.problem}")
        return notes

    def neighbours(self, name: str, top: int) -> dict[str, Any]:
        """The nearest tokens in the embedding."""
        from quatrain.evaluation.inspection import find_token, neighbours
        from quatrain.evaluation.inspection.wording import neighbour_lines

        token = find_token(self.subject.tokenizer, name)
        nearest = neighbours(self.subject.model, self.subject.tokenizer, token.id, top=top)
        self.show([*neighbour_lines(token, nearest), ""])
        return {"token": token.as_dict(), "neighbours": [each.as_dict() for each in nearest]}

    def text(
        self, text: str, answer: str | None, next_tokens: bool, attention: Path | None, top: int
    ) -> dict[str, Any]:
        """The tokens of a text, or the analyses of it."""
        from quatrain.evaluation.inspection import tokens
        from quatrain.evaluation.inspection.attention import drawable
        from quatrain.evaluation.inspection.wording import token_lines

        if not next_tokens and attention is None:
            ids = self._ids(text, configured=(self.subject.base / "config.json").is_file())
            read = tokens(self.subject.tokenizer, ids)
            per_token = f"{len(text) / len(ids):.2f} characters a token"
            self.show([*token_lines(read), "", f"{len(ids):,} tokens, {per_token}"])
            return {"tokens": [each.as_dict() for each in read]}
        limit = drawable(self.subject.config) if attention is not None else None
        ids = self._ids(text, limit=limit)
        answer_ids = self._answer(answer, limit)
        output: dict[str, Any] = {"tokens": [each.as_dict() for each in tokens(self.subject.tokenizer, ids)]}
        if next_tokens:
            output |= self._next(ids, answer_ids, top)
        if attention is not None:
            output |= self._attention(ids, answer_ids, attention)
        return output

    def _ids(self, text: str, *, configured: bool = True, limit: int | None = None) -> list[int]:
        from quatrain.evaluation.inspection import read_ids, text_ids

        config, tokenizer = self.subject.config if configured else None, self.subject.tokenizer
        special = self.special_tokens
        ids = read_ids(tokenizer, text, config, special_tokens=special, truncate=self.truncate, limit=limit)
        whole = len(text_ids(tokenizer, text, config, special_tokens=special))
        if len(ids) < whole:
            self.show([f"The text is truncated to {len(ids):,} of its {whole:,} tokens.", ""])
        return ids

    def _answer(self, answer: str | None, limit: int | None) -> list[int]:
        """The token ids of the decoder's output."""
        from quatrain.core.errors import InputError
        from quatrain.evaluation.inspection import read_ids

        if answer is None:
            return []
        config = self.subject.config
        if config.architecture != "encoder-decoder":
            raise InputError(
                f"--answer: is for encoder-decoders; this {config.family} model is a plain {config.architecture}. "
                "Omit it, or append it to the text."
            )
        longest = min(length - 1 for length in (config.context_length, limit) if length is not None)
        return read_ids(
            self.subject.target_tokenizer,
            answer,
            config,
            special_tokens=self.special_tokens,
            truncate=self.truncate,
            limit=longest,
            what="answer",
        )

    def _next(self, ids: list[int], answer: list[int], top: int) -> dict[str, Any]:
        from quatrain.evaluation.inspection import predictions
        from quatrain.evaluation.inspection.predictions import check_language_head
        from quatrain.evaluation.inspection.wording import prediction_lines

        subject = self.subject
        check_language_head(subject.config)
        tokenizer = subject.target_tokenizer if subject.config.architecture == "encoder-decoder" else subject.tokenizer
        result = predictions(subject.model, tokenizer, ids, answer=answer, top=top)
        self.show([*prediction_lines(result, width=_width()), ""])
        return {"predictions": result.as_dict()}

    def _attention(self, ids: list[int], answer: list[int], out: Path) -> dict[str, Any]:
        from quatrain.cli.output import show_error
        from quatrain.core.atomic import atomic_write, write_text
        from quatrain.core.errors import InputError
        from quatrain.evaluation.inspection import attention_maps, attention_page, attention_picture
        from quatrain.evaluation.inspection.attention_picture import require_matplotlib

        subject, suffix = self.subject, "" if out.is_dir() else out.suffix.lower()
        page, picture = (out / PAGE, out / PICTURE) if not suffix else (out, out)
        draws = suffix != ".html"
        try:
            if draws:
                require_matplotlib()
        except InputError as error:
            if suffix == ".png":
                raise
            show_error(f"{picture} is not written. {error}", "warning: ")
            draws = False
        target = subject.target_tokenizer if subject.config.architecture == "encoder-decoder" else None
        maps = attention_maps(subject.model, subject.tokenizer, ids, answer=answer, target_tokenizer=target)
        written = []
        if suffix != ".png":
            write_text(page, attention_page(maps, title=subject.title))
            written.append(str(page))
        if draws:
            data = attention_picture(maps, title=subject.title)
            with atomic_write(picture, "wb") as file:
                file.write(data)
            written.append(str(picture))
        shapes = {each.kind: list(each.weights.shape) for each in maps}
        self.show([f"{each} of {count[0]} layers × {count[1]} heads" for each, count in shapes.items()])
        self.show([f"Wrote {path}" for path in written])
        return {"attention": {"shapes": shapes, "files": written}}

    def views(self, asked: _Views, text: str | None, answer: str | None, top: int | None) -> dict[str, Any]:
        """The logit lens, attribution, rollout, induction heads and map: in the terminal, and on a page."""
        from quatrain.core.atomic import write_text
        from quatrain.core.reading import user_path
        from quatrain.evaluation.inspection import views_page, wording

        ids = [] if text is None or not (asked.lens or asked.attribution or asked.rollout) else self._ids(text)
        found: dict[str, Any] = {}
        output: dict[str, Any] = {}
        if asked.lens:
            found["lens"] = self._lens(ids, answer, 5 if top is None else top)
            self.show([*wording.lens_lines(found["lens"], width=_width()), ""])
        if asked.attribution:
            found["attribution"] = self._attribution(ids, asked.target)
            self.show([*wording.attribution_lines(found["attribution"], width=_width()), ""])
        if asked.rollout:
            found["rollout"] = self._rollout(ids)
            self.show([*wording.rollout_lines(*found["rollout"]), ""])
        if asked.map is not None:
            found["embedding"] = self._map(asked.map, asked.texts, asked.points)
            self.show([*wording.map_lines(found["embedding"]), ""])
        if asked.induction:
            from quatrain.evaluation.inspection import induction_scores

            special = frozenset(self.subject.tokenizer.special_ids) if self.subject.has_tokenizer else frozenset()
            found["induction"] = induction_scores(self.subject.model, exclude=special)
            self.show([*wording.induction_lines(found["induction"]), ""])
        for name, value in found.items():
            output[name] = value[1].tolist() if name == "rollout" else value.as_dict()
        if asked.page is not None:
            path = user_path(asked.page, "--page")
            write_text(path, views_page(self.subject.title, **found))
            self.show([f"Wrote {path}"])
            output["page"] = str(path)
        return output

    @property
    def _output_tokenizer(self) -> Any:
        """The tokenizer of what the model predicts."""
        subject = self.subject
        return subject.target_tokenizer if subject.config.architecture == "encoder-decoder" else subject.tokenizer

    def _lens(self, ids: list[int], answer: str | None, top: int) -> Any:
        from quatrain.evaluation.inspection import logit_lens

        return logit_lens(self.subject.model, self._output_tokenizer, ids, answer=self._answer(answer, None), top=top)

    def _attribution(self, ids: list[int], target: str | None) -> Any:
        from quatrain.evaluation.inspection import attribute, find_token

        config, chosen = self.subject.config, None
        if target is not None and target in config.labels:
            chosen = config.labels.index(target)
        elif target is not None:
            chosen = find_token(self._output_tokenizer, target).id
        others = self._output_tokenizer if config.architecture == "encoder-decoder" and not config.labels else None
        return attribute(self.subject.model, self.subject.tokenizer, ids, target=chosen, target_tokenizer=others)

    def _rollout(self, ids: list[int]) -> Any:
        from quatrain.evaluation.inspection import attention_maps, attention_rollout

        maps = attention_maps(self.subject.model, self.subject.tokenizer, ids)[0]
        return maps.keys, attention_rollout(maps)

    def _map(self, method: str, texts: Path | None, count: int) -> Any:
        from quatrain.core.errors import InputError
        from quatrain.core.reading import read_text, user_path
        from quatrain.evaluation.inspection import embedding_map, text_vectors, token_map, vocabulary_tokens

        subject = self.subject
        if texts is None:
            return token_map(subject.model, vocabulary_tokens(subject.tokenizer, count), method=method)
        lines = [line.strip() for line in read_text(user_path(texts, "--texts")).splitlines() if line.strip()]
        if not lines:
            raise InputError(f"{texts}: has no text; write one on each line")
        return embedding_map(text_vectors(subject.model, subject.tokenizer, lines), lines, method=method)


def _width() -> int:
    """The output width: that of the terminal, or more for a file or a pipe."""
    import os
    import shutil
    import sys

    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return shutil.get_terminal_size().columns if known else 120
