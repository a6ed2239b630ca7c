"""Recipe files: the stages of a recipe in YAML, with the line of each problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from caption_assets.captioning.output import TEXT, ChoiceOutput, JsonOutput, Output
from caption_assets.captioning.stages import Stage, StageError, StageGraph
from caption_assets.errors import CaptionAssetsError
from caption_assets.store.access import STANDARD, Access
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST

_FOLDER = files("caption_assets.captioning") / "recipes"
BUILT_IN = tuple(sorted(PurePosixPath(file.name).stem for file in _FOLDER.iterdir() if file.name.endswith(".yaml")))
"""Names of the built-in recipes."""
Loc = Sequence[str | int]
"""A place in a file: keys of mappings and numbers of items."""


class RecipeError(CaptionAssetsError):
    """An invalid recipe file, with the line of the problem."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Sampling(_Strict):
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


class _Output(_Strict):
    json_schema: dict[str, Any] | None = Field(None, alias="json")
    choices: tuple[str, ...] | None = None
    score: str | None = None

    @model_validator(mode="after")
    def _check(self) -> _Output:
        if (self.json_schema is None) == (self.choices is None):
            raise ValueError("an output is `text`, or a mapping with one of the keys `json` and `choices`")
        if self.score is not None and self.choices is None:
            raise ValueError("`score` belongs to `choices`: remove it")
        _ = self.parsed
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

    @field_validator("output", mode="before")
    @classmethod
    def _parse_output(cls, value: object) -> object:
        """Parse a mapping before the union is tried, which would report the errors of all its members."""
        return _Output.model_validate(value) if isinstance(value, Mapping) else value

    @property
    def parsed(self) -> Stage:
        sampling = {**self.sampling.model_dump(), "max_output_tokens": self.max_output_tokens}
        given = {name: value for name, value in sampling.items() if value is not None}
        output = TEXT if isinstance(self.output, str) else self.output.parsed
        if given and isinstance(output, ChoiceOutput):
            field = next(name for name in ("max_output_tokens", "sampling") if name in given or name == "sampling")
            raise StageError(self.name, field, "a choice is one token, the most probable one: remove the sampling")
        return Stage(self.name, self.prompt, output, self.video, given)


class _File(_Strict):
    description: str = ""
    clip_prompt: str = ""
    stages: tuple[_Stage, ...] = Field(min_length=1)


class _Loader(yaml.SafeLoader):
    """A loader for which ``yes``, ``no``, ``on`` and ``off`` are words, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


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
    try:
        content = Root.open(folder or ("/" if name.startswith("/") else "."), access).read(file)
        return parse_recipe(path.stem, content.decode(), name)
    except FileNotFoundError as error:
        raise RecipeError(f"the recipe file {name} does not exist: create it, or correct the path") from error
    except UnicodeDecodeError as error:
        problem = f"{error.reason} at byte {error.start}"
        raise RecipeError(f"{name} is not UTF-8 text ({problem}): save it as UTF-8") from error


@cache
def built_in(name: str) -> StageGraph:
    """A built-in recipe."""
    return parse_recipe(name, (_FOLDER / f"{name}.yaml").read_text(), f"{name}.yaml")


def parse_recipe(name: str, text: str, place: str) -> StageGraph:
    """The stages in the text of a recipe file.

    Args:
        name: the recipe's name.
        text: the content of the file.
        place: the file, for messages.

    Raises:
        RecipeError: if it is not valid YAML or not a valid recipe.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        content = loader.construct_document(node) if node else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{place}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{place}: not valid YAML: {error}") from error
    try:
        parsed = _File.model_validate(content)
    except ValidationError as error:
        raise RecipeError("; ".join(_explain(detail, node, place) for detail in error.errors())) from error
    try:
        return StageGraph(name, tuple(stage.parsed for stage in parsed.stages), parsed.clip_prompt)
    except StageError as error:
        number = next(at for at, stage in enumerate(parsed.stages) if stage.name == error.stage)
        loc: Loc = ("clip_prompt",) if error.field == "clip_prompt" else ("stages", number, error.field)
        raise RecipeError(f"{place}:{_line(node, loc)}: {error}") from error


def _explain(detail: Any, node: yaml.Node | None, place: str) -> str:
    """A message for a validation error: file, line, key, problem."""
    loc = [part for part in detail["loc"] if part not in ("literal['text']", "_Output")]
    problem = str(detail["msg"]).removeprefix("Value error, ")
    key = ".".join(str(part) for part in loc)
    return f"{place}:{_line(node, loc)}: {f'{key}: ' if key else ''}{problem}"


def _line(node: yaml.Node | None, loc: Loc) -> int:
    """The line of a place in a document, from 1; that of the nearest place above it if it does not exist."""
    line = 1
    for part in loc:
        if node is not None:
            line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return line
            key, node = found
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


DEFAULT = built_in("general")
STAGE1, STAGE2 = STAGES = DEFAULT.stages
TABLE_NAMES = (CLIP_MANIFEST, *(stage.name for stage in STAGES))
