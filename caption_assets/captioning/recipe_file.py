"""Recipe files: the stages of a recipe, with the line of each problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from caption_assets.captioning.json_schema import SchemaError
from caption_assets.captioning.output import TEXT, ChoiceOutput, JsonOutput, Output
from caption_assets.captioning.recipe_yaml import Document, Loc, parse_yaml
from caption_assets.captioning.recipe_yaml import RecipeError as RecipeError
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.stages import Stage, StageError, StageGraph
from caption_assets.models.variants import UnknownModel, Variant, find_language_model
from caption_assets.store.access import STANDARD, Access
from caption_assets.store.failure import url_has_credentials
from caption_assets.store.root import Root

_FOLDER = files("caption_assets.captioning") / "recipes"
BUILT_IN = tuple(sorted(PurePosixPath(file.name).stem for file in _FOLDER.iterdir() if file.name.endswith(".yaml")))
"""Names of the built-in recipes."""
MAX_BYTES = 256 << 10
"""Maximum size of a recipe file."""
_GREEDY = SamplingParams(temperature=0.0)
"""Sampling parameters that allow each other parameter."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Sampling(_Strict):
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    @field_validator("*")
    @classmethod
    def _check_field(cls, value: Any, info: ValidationInfo) -> Any:
        return _check_sampling(value, info)

    @model_validator(mode="after")
    def _check_seed(self) -> _Sampling:
        SamplingParams(**self.given)
        return self

    @property
    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


def _check_sampling(value: Any, info: ValidationInfo) -> Any:
    """Check the range of one sampling parameter."""
    if value is not None:
        replace(_GREEDY, **{str(info.field_name): value})
    return value


class _Output(_Strict):
    json_schema: dict[Any, Any] | None = Field(None, alias="json")
    choices: tuple[str, ...] | None = None
    score: str | None = None

    @model_validator(mode="after")
    def _check(self) -> _Output:
        if (self.json_schema is None) == (self.choices is None):
            raise ValueError("an output is `text`, or a mapping with one of the keys `json` and `choices`")
        if self.score is not None and self.choices is None:
            raise ValueError("`score` belongs to `choices`: remove it")
        return self

    @property
    def parsed(self) -> Output:
        if self.json_schema is not None:
            return JsonOutput(self.json_schema)
        return ChoiceOutput(self.choices or (), self.score)


class _Stage(_Strict):
    name: str
    prompt: str
    output: Literal["text"] | _Output = "text"
    video: bool = True
    sampling: _Sampling = _Sampling()
    max_output_tokens: int | None = None
    model: str | None = None
    revision: str | None = None

    @field_validator("output", mode="before")
    @classmethod
    def _parse_output(cls, value: object) -> object:
        """Parse the output before the union is tried, which would report the errors of all its members."""
        if isinstance(value, Mapping):
            return _Output.model_validate(value)
        if value != "text":
            raise ValueError(f"the output is {_kind(value)}: write `text`, or a mapping with `json` or `choices`")
        return value

    @field_validator("max_output_tokens")
    @classmethod
    def _check_limit(cls, value: Any, info: ValidationInfo) -> Any:
        return _check_sampling(value, info)

    @property
    def parsed(self) -> Stage:
        limit = {} if self.max_output_tokens is None else {"max_output_tokens": self.max_output_tokens}
        given = {**self.sampling.given, **limit}
        try:
            output = TEXT if isinstance(self.output, str) else self.output.parsed
        except SchemaError as error:
            raise StageError(self.name, ("output", "json", *error.path), str(error)) from error
        except ValueError as error:
            raise StageError(self.name, ("output", "choices"), str(error)) from error
        if given and isinstance(output, ChoiceOutput):
            field = "max_output_tokens" if limit else "sampling"
            raise StageError(self.name, field, f"a choice is one token, the most probable one: remove `{field}`")
        return Stage(self.name, self.prompt, output, self.video, given, self._language_model)

    @property
    def _language_model(self) -> Variant | None:
        if self.model is None:
            if self.revision is not None:
                raise StageError(self.name, "revision", "`revision` belongs to `model`: remove it")
            return None
        if url_has_credentials(self.model):
            raise StageError(
                self.name, "model", "the URL contains credentials, which Dagster's UI would show: remove them"
            )
        try:
            return find_language_model(self.model, self.revision)
        except UnknownModel as error:
            raise StageError(self.name, "model", str(error)) from error


class _File(_Strict):
    description: str = ""
    clip_prompt: str = ""
    stages: tuple[_Stage, ...]

    @field_validator("stages")
    @classmethod
    def _check_number(cls, stages: tuple[_Stage, ...]) -> tuple[_Stage, ...]:
        if not stages:
            raise ValueError("`stages` is empty: add a stage with `name` and `prompt`")
        return stages


_MODELS: Mapping[str, type[_Strict]] = {"": _File, "stages": _Stage, "output": _Output, "sampling": _Sampling}
"""The models of a file's mappings, by the last key that leads to them."""


def read_recipe(name: str, access: Access = STANDARD) -> StageGraph:
    """The stages of a recipe.

    Args:
        name: a built-in recipe, or a YAML file: a local path or an ``s3://`` URL.
        access: access options of object storage.

    Raises:
        RecipeError: if there is no such recipe, or its file is invalid.
        StoreError: if the file cannot be read.
    """
    if name in BUILT_IN:
        return built_in(name)
    path = PurePosixPath(name)
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"unknown recipe {name!r}: choose one of {', '.join(BUILT_IN)}, or give a .yaml file")
    folder, _, file = name.rpartition("/")
    root = Root.open(folder or ("/" if name.startswith("/") else "."), access)
    try:
        content = root.read(file)
    except FileNotFoundError as error:
        raise RecipeError(f"the recipe file {name} does not exist: create it, or correct the path") from error
    if len(content) > MAX_BYTES:
        raise RecipeError(
            f"{name} has {len(content)} bytes, but a recipe file has at most {MAX_BYTES}: give a file with stages alone"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{name}:{line}: not UTF-8 text ({error.reason}): save the file as UTF-8") from error
    return parse_recipe(path.stem, text, name)


@cache
def built_in(name: str) -> StageGraph:
    """A built-in recipe."""
    return parse_recipe(name, (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")


def parse_recipe(name: str, text: str, place: str) -> StageGraph:
    """The stages in the text of a recipe file.

    Args:
        name: the recipe's name.
        text: the content of the file.
        place: the file, for messages.

    Raises:
        RecipeError: if it is not valid YAML or not a valid recipe.
    """
    document = parse_yaml(text, place)
    try:
        parsed = _File.model_validate(document.values)
    except ValidationError as error:
        raise RecipeError("; ".join(_explain(detail, document, place) for detail in error.errors())) from error
    stages = []
    for number, stage in enumerate(parsed.stages):
        try:
            stages.append(replace(stage.parsed, place=f"{place}:{document.line(('stages', number, 'output'))}"))
        except StageError as error:
            raise RecipeError(f"{place}:{document.line(('stages', number, *error.field))}: {error}") from error
    try:
        return StageGraph(name, tuple(stages), parsed.clip_prompt, parsed.description)
    except StageError as error:
        # Of two stages with the same name, the second one is the problem.
        number = max(at for at, stage in enumerate(parsed.stages) if stage.name == error.stage)
        loc: Loc = error.field if error.field == ("clip_prompt",) else ("stages", number, *error.field)
        raise RecipeError(f"{place}:{document.line(loc)}: {error}") from error


def _explain(detail: Any, document: Document, place: str) -> str:
    """A message for a validation error: file, line, problem, remedy."""
    loc = [part for part in detail["loc"] if part != "_Output"]
    return f"{place}:{document.line(loc)}: {_problem(detail, loc)}"


def _problem(detail: Any, loc: Loc) -> str:
    found, subject = _kind(detail["input"]), _subject(loc)
    match detail["type"]:
        case "value_error":
            return str(detail["msg"]).removeprefix("Value error, ")
        case "extra_forbidden":
            return _unknown_key(loc)
        case "missing":
            return f"{subject} is missing: add it"
        case "model_type":
            model = _MODELS[_last_key(loc)]
            return f"{subject} is {found}: write a mapping with {' and '.join(_required(model)) or 'keys and values'}"
        case "dict_type":
            return f"{subject} is {found}: write a JSON Schema, which is a mapping"
        case "tuple_type":
            return f"{subject} is {found}: write a list, one item a line after '- '"
        case "string_type" if isinstance(detail["input"], bool | int | float):
            return f"{subject} is {found}: put it in quotes"
        case "string_type":
            return f"{subject} is {found}: write a text, in quotes if it begins with a brace or bracket"
        case "bool_type" | "bool_parsing":
            return f"{subject} is {found}: write true or false"
        case kind if kind.startswith("int_"):
            return f"{subject} is {found}: write a whole number"
        case kind if kind.startswith(("float_", "finite_")):
            return f"{subject} is {found}: write a number"
        case _:
            return f"{subject}: {detail['msg']}"


def _unknown_key(loc: Loc) -> str:
    fields = _MODELS[_last_key(loc[:-1])].model_fields
    known = [field.alias or name for name, field in fields.items()]
    near = get_close_matches(str(loc[-1]), known, n=1)
    remedy = f"did you mean `{near[0]}`?" if near else f"use {', '.join(f'`{key}`' for key in known)}, or remove it"
    return f"unknown key `{loc[-1]}`; {remedy}"


def _required(model: type[_Strict]) -> list[str]:
    return [f"`{name}`" for name, field in model.model_fields.items() if field.is_required()]


def _last_key(loc: Loc) -> str:
    return next((part for part in reversed(loc) if isinstance(part, str)), "")


def _subject(loc: Loc) -> str:
    """The name of a place for messages."""
    if not loc:
        return "the file"
    if isinstance(loc[-1], int):
        return f"item {loc[-1] + 1} of `{_last_key(loc)}`"
    return f"`{loc[-1]}`"


def _kind(value: object) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value!r}"
        case Mapping():
            return "a mapping"
        case _:
            return "a list"
