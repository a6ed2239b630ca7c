from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.output import ChoiceOutput, JsonOutput
from caption_assets.captioning.recipe_file import BUILT_IN, MAX_BYTES, RecipeError, built_in, parse_recipe, read_recipe
from caption_assets.captioning.sampling import DETERMINISTIC, SamplingParams
from caption_assets.captioning.stages import StageGraph
from caption_assets.store.root import Root

STAGE = "stages:\n  - name: a\n    prompt: Look.\n"
"""A recipe with one stage; its next line is line 4."""


def parse(text: str) -> StageGraph:
    return parse_recipe("mine", text, "mine.yaml")


def problem(text: str) -> str:
    """The message about an invalid recipe, without the file's name."""
    with pytest.raises(RecipeError) as caught:
        parse(text)
    file, _, message = str(caught.value).partition(":")
    assert file == "mine.yaml"
    assert "pydantic" not in message
    return message


@pytest.mark.fast
@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_recipe_has_a_description(name: str) -> None:
    graph = built_in(name)
    assert graph.name == name
    assert graph.description.endswith(".")


@pytest.mark.fast
def test_fields_of_a_stage_are_read() -> None:
    graph = parse(
        """
        description: Mine.
        clip_prompt: a
        stages:
          - name: b
            prompt: "{a} is it? It takes {seconds} s."
            video: false
            output: {choices: [yes, no], score: yes}
          - name: a
            prompt: Look.
            output: {json: {type: object}}
            sampling: {temperature: 0, top_p: 1, repetition_penalty: 1.2, seed: 3}
            max_output_tokens: 9
        """
    )
    assert (graph.description, graph.clip_prompt) == ("Mine.", "a")
    a, b = graph.stages
    assert (a.name, a.video, a.output) == ("a", True, JsonOutput({"type": "object"}))
    assert a.params(SamplingParams()) == SamplingParams(0, 1, 1.2, 9, 3)
    assert (b.name, b.needs, b.video, b.output) == ("b", ("a",), False, ChoiceOutput(("yes", "no"), "yes"))
    assert b.instruction({"a": "{seconds}"}, 1.25) == "{seconds} is it? It takes 1.2 s."


@pytest.mark.fast
def test_deterministic_recipe_overrides_the_sampling_of_stages() -> None:
    [stage] = parse(f"{STAGE}    sampling: {{temperature: 1, top_p: 0.5, repetition_penalty: 1.2}}").stages
    assert stage.params(DETERMINISTIC) == SamplingParams(0.0, 1.0, 1.2, seed=0)


@pytest.mark.fast
def test_clip_prompt_is_the_first_text_stage_without_slots() -> None:
    choices = "  - {name: b, prompt: 'Is it?', output: {choices: [yes, no]}}\n"
    assert parse(f"stages:\n{choices}").clip_prompt == ""
    assert parse(f"{STAGE}{choices}").clip_prompt == "a"
    assert parse(f"stages:\n{choices}  - {{name: a, prompt: Look.}}").clip_prompt == "a"


@pytest.mark.fast
@pytest.mark.parametrize(
    "word", ["yes", "no", "on", "off", "y", "1:30", "2026-01-01", "010", "1_000", "0x1f", "<<", "="]
)
def test_word_that_yaml_1_1_converts_is_a_word(word: str) -> None:
    [stage] = parse(f"{STAGE}    output: {{choices: [{word}, other]}}").stages
    assert stage.output == ChoiceOutput((word, "other"))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: the file is empty: write a mapping with `stages`"),
        ("# nothing", "1: the file is empty: write a mapping with `stages`"),
        ("- name: a", "1: the file is a list: write a mapping with `stages`"),
        ("stages: []", "1: `stages` is empty: add a stage with `name` and `prompt`"),
        ("\nstages: {}", "2: `stages` is a mapping: write a list, one item a line after '- '"),
        ("stages:\n  - 3", "2: item 1 of `stages` is the number 3: write a mapping with `name` and `prompt`"),
        ("stages:\n  - name: a", "2: `prompt` is missing: add it"),
        (f"{STAGE}    prompts: x", "4: unknown key `prompts`; did you mean `prompt`?"),
        (
            f"{STAGE}    zzz: x",
            "4: unknown key `zzz`; use `name`, `prompt`, `output`, `video`, `sampling`, `max_output_tokens`, `model`, "
            "`revision`, or remove it",
        ),
        (f"{STAGE}    sampling: {{top: 1}}", "4: unknown key `top`; did you mean `top_p`?"),
        (f"{STAGE}    video: maybe", "4: `video` is the text 'maybe': write true or false"),
        (f"{STAGE}    max_output_tokens: many", "4: `max_output_tokens` is the text 'many': write a whole number"),
        (f"{STAGE}    max_output_tokens: 0", "4: the output limit is 0 tokens: give at least 1"),
        (f"{STAGE}    sampling:\n      temperature: 3", "5: the temperature is 3.0: give 0 to 2.0"),
        (f"{STAGE}    sampling:\n      top_p: .nan", "5: `top_p` is the number nan: write a number"),
        (f"{STAGE}    sampling: {{seed: 1, temperature: 1}}", "4: a seed needs temperature 0, not 1.0"),
        ("stages:\n  - name: a\n    prompt:", "3: `prompt` is empty: write a text"),
        ("stages:\n  - name: a\n    prompt: {b}", "3: `prompt` is a mapping: write a text, in quotes"),
        ("stages:\n  - name: 7\n    prompt: x", "2: `name` is the number 7: put it in quotes"),
        ("stages:\n  - name: My stage\n    prompt: x", "2: 'My stage' cannot be an asset and a folder: use up to 63"),
        ("stages:\n  - name: weights\n    prompt: x", "2: 'weights' is reserved: choose another name"),
        ("stages:\n  - name: decode\n    prompt: x", "2: 'decode' is reserved: choose another name"),
        ("stages:\n  - name: context\n    prompt: x", "2: 'context' is reserved: choose another name"),
        (f"{STAGE}  - name: a\n    prompt: x", "4: there are two stages 'a': rename one of them"),
        (f"{STAGE}  - name: b\n    prompt: '{{c}}'", "5: the slot {c} names no stage: use one of a, b or seconds"),
        (
            STAGE + "  - name: d\n    prompt: '{c}'\n  - name: b\n    prompt: '{c}'\n  - name: c\n    prompt: '{b}'",
            "9: stages need each other in a circle: c → b → c; remove a slot from one of them",
        ),
        ("stages:\n  - name: a\n    prompt: '{a}'", "3: stages need each other in a circle: a → a; remove a slot"),
        (f"{STAGE}    video: false", "4: a sees neither the video nor a text: set video to true"),
        (f"{STAGE}clip_prompt: b", "4: clip_prompt is 'b': use one of a"),
        (f"{STAGE}    output: audio", "4: the output is the text 'audio': write `text`, or a mapping with `json` or"),
        (f"{STAGE}    output: {{}}", "4: an output is `text`, or a mapping with one of the keys `json` and `choices`"),
        (f"{STAGE}    output: {{choices: yes}}", "4: `choices` is the text 'yes': write a list, one item a line"),
        (f"{STAGE}    output:\n      choices: [1, a]", "5: item 1 of `choices` is the number 1: put it in quotes"),
        (f"{STAGE}    output:\n      choices: [true, a]", "5: item 1 of `choices` is true: put it in quotes"),
        (f"{STAGE}    output:\n      choices: [yes]", "5: the number of choices is 1: give at least two"),
        (f"{STAGE}    output:\n      choices: [a, a]", "5: the choice 'a' is there more than once: remove one"),
        (f"{STAGE}    output: {{choices: [a, b], score: c}}", "4: the score is 'c': name one of the choices a, b"),
        (f"{STAGE}    output: {{json: {{}}, score: c}}", "4: `score` belongs to `choices`: remove it"),
        (
            f"{STAGE}    max_output_tokens: 4\n    output: {{choices: [a, b]}}",
            "4: a choice is one token, the most probable one: remove `max_output_tokens`",
        ),
        # YAML
        (f"{STAGE}    name: b", "4: not valid YAML: the key 'name' occurs twice: remove one"),
        ("a: &x [1]\nb: *x", "2: not valid YAML: the alias *x is not supported: repeat the text"),
        ("a: &x [*x]", "1: not valid YAML: the alias *x is not supported"),
        (
            "stages:\n\t- name: a",
            "2: not valid YAML: found character '\\t' that cannot start any token: indent with",
        ),
        ("stages:\n  - name: a\n    prompt: Say: it", "3: not valid YAML: mapping values are not allowed here: put a"),
        ("a: 1\n---\nb: 2", "2: not valid YAML: "),
        ("stages: [{prompt: Is it?}]", "1: not valid YAML: expected ',' or '}', but got '?': put a text inside braces"),
        ("a: [", "1: not valid YAML: "),
        ("[" * 5000, " nested too deeply: remove brackets, braces or levels"),
        ("a:\n  - \x00", "2: YAML allows no control characters such as U+0000: remove it"),
        ("a: !!python/object:os.system x", "1: not valid YAML: could not determine a constructor for the tag"),
        ("? [a]\n: b", "1: not valid YAML: a key is a list or a mapping"),
        ("1: x", "1: `stages` is missing: add it"),
    ],
)
def test_problem_is_reported_with_its_line_and_remedy(text: str, expected: str) -> None:
    assert problem(text).startswith(expected)


@pytest.mark.fast
def test_all_invalid_values_are_reported() -> None:
    assert problem(f"{STAGE}    video: 7\n    sampling: 8").count("mine.yaml:") == 1


SCHEMA = f"{STAGE}    output:\n      json:\n"
"""A stage whose JSON Schema begins in line 6."""


@pytest.mark.fast
@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("type: strng", "6: the type is 'strng': use one of array, boolean, integer, null, number, object, string"),
        ("type: [string, nil]", "6: the type is 'nil': use one of"),
        ("type: array\n        maxitems: 3", "7: unknown keyword `maxitems`; did you mean `maxItems`?"),
        ("items: [{}]", "6: a JSON Schema is a mapping, not [{}]: write one with the key `type`"),
        ("properties:\n          a: text", "7: a JSON Schema is a mapping, not 'text': write one with the key `type`"),
        ("properties: [a]", "6: `properties` needs a mapping of names to schemas"),
        ("properties: {1: {}}", "6: the key 1 is not a text: put it in quotes"),
        ("anyOf: {}", "6: `anyOf` needs a list of schemas"),
        ("enum: []", "6: `enum` needs a list with at least one value"),
        ("enum: [.inf]", "6: JSON has no value such as inf: put it in quotes, or write a number"),
        ("enum: [!!binary aGk=]", "6: JSON has no value such as b'hi': put it in quotes, or write a number"),
        ("maxLength: -1", "6: `maxLength` is -1: write a whole number, 0 or more"),
        ("maxItems: 2\n        minItems: 3", "7: `minItems` is 3, above `maxItems`, 2: lower the first or raise the"),
        ("properties: {color: {}}\n        required: [colour]", "7: `required` names 'colour', which is not in `prop"),
        ("required: a", "6: `required` needs a list of names"),
        (
            "$ref: '#/$defs/a'\n        $defs: {b: {}}",
            "6: the reference '#/$defs/a' leads nowhere: correct it",
        ),
        (
            "$ref: '#/$defs/a'\n        $defs: {a: {$ref: '#/$defs/a'}}",
            "6: the reference '#/$defs/a' leads back",
        ),
        ("$ref: https://example.com/a", "6: the reference 'https://example.com/a' leads to another document, which is"),
    ],
)
def test_invalid_json_schema_is_reported_with_its_line(schema: str, expected: str) -> None:
    assert problem(f"{SCHEMA}        {schema}").startswith(expected)


@pytest.mark.fast
@pytest.mark.parametrize(
    "schema",
    [
        "$ref: '#/$defs/a'\n        $defs: {a: {type: string}}",
        "properties: {$ref: {type: string}, typo: {}}",
        "items: true",
    ],
)
def test_valid_json_schema_is_accepted(schema: str) -> None:
    [stage] = parse(f"{SCHEMA}        {schema}").stages
    assert isinstance(stage.output, JsonOutput)


@pytest.mark.fast
@given(st.text())
def test_any_text_is_a_recipe_or_an_error(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^mine\.yaml:"):
        parse(text)


@pytest.mark.fast
def test_file_is_read_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "my recipe.yml"
    file.write_bytes(b"\xef\xbb\xbf" + STAGE.encode())
    graph = read_recipe(str(file))
    assert (graph.name, [stage.name for stage in graph.stages]) == ("my recipe", ["a"])


@pytest.mark.fast
def test_relative_path_is_read_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(STAGE)
    monkeypatch.chdir(tmp_path)
    assert read_recipe("mine.yaml") == read_recipe("./mine.yaml") == read_recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: create it, or correct the path"),
        (b"a: 1\nb: \xe9", ":2: not UTF-8 text (unexpected end of data): save the file as UTF-8"),
        (STAGE.encode("utf-16"), ":1: not UTF-8 text"),
        (b"#" * (MAX_BYTES + 1), f"has {MAX_BYTES + 1} bytes, but a recipe file has at most {MAX_BYTES}"),
    ],
    ids=["missing", "latin-1", "utf-16", "large"],
)
def test_unreadable_file_is_an_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(file))
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.fast
def test_unknown_recipe_is_an_error_that_lists_the_built_in_ones() -> None:
    with pytest.raises(RecipeError, match=r"unknown recipe 'genral': choose one of driving, .*, or give a \.yaml file"):
        read_recipe("genral")


@pytest.mark.store
def test_file_in_object_storage_is_read(s3_url: str) -> None:
    Root.open(s3_url).write("recipes/mine.yaml", STAGE.encode())
    assert read_recipe(f"{s3_url}/recipes/mine.yaml").name == "mine"
    with pytest.raises(RecipeError, match="does not exist"):
        read_recipe(f"{s3_url}/recipes/yours.yaml")


@pytest.mark.fast
def test_scored_recipe_begins_with_the_general_stages() -> None:
    assert built_in("scored").stages[:2] == built_in("general").stages


@pytest.mark.fast
def test_arrays_and_texts_of_built_in_schemas_are_limited() -> None:
    schemas = [
        stage.output.schema
        for name in ("structured", "events")
        for stage in built_in(name).stages
        if isinstance(stage.output, JsonOutput)
    ]
    assert len(schemas) == 2
    for schema in schemas:
        assert json.dumps(schema).count('"array"') == json.dumps(schema).count('"maxItems"')
        assert json.dumps(schema).count('"string"') == json.dumps(schema).count('"maxLength"')
