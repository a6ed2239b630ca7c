import json
import re
from pathlib import Path

import pytest

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.environment import IN_RECIPES, PREFIX, RENAMED
from caption_assets.export.config import Cut
from caption_assets.models.checkpoint import Lora
from caption_assets.settings import LOCAL_LINK_URL, Settings, SettingsError, load_settings
from tests.stages import STAGE1

pytestmark = pytest.mark.fast


def test_all_settings_have_defaults() -> None:
    settings = load_settings()
    assert (settings.root, settings.source_url, settings.model) == ("data", "data/shards", "sample")
    assert settings.caption_recipe.graph is built_in("sample")


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("CAPTION_RECIPE", "poem", r"unknown recipe 'poem': choose one of driving, .*, or give a \.yaml file"),
        ("CAPTION_ENGINE_ARGS", "[1]", 'JSON array, not an object: write one such as {"max_num_seqs": 8}'),
        ("CAPTION_ENGINE_ARGS", '"text"', "JSON string, not an object"),
        ("CAPTION_ENGINE_ARGS", "null", "JSON null, not an object"),
        ("CAPTION_ENGINE_ARGS", "{'max_num_seqs': 8}", r"line 1, column 2 .*: write a JSON object such as {\"max_num"),
        ("CAPTION_ENGINE_ARGS", '{"max_num_seqs": 8', "invalid JSON at line 1, column 19"),
        ("CAPTION_ENGINE_ARGS", '{"max_num_seqs": NaN}', "JSON has no NaN"),
        ("CAPTION_ENGINE_ARGS", "[" * 100_000, "nested too deeply"),
        (
            "CAPTION_GPU_NODE_SELECTOR",
            "gpu=true",
            'column 1 .*: write a JSON object such as {"nvidia.com/gpu.present": "true"}',
        ),
        (
            "CAPTION_GPU_NODE_SELECTOR",
            '{"gpu": true}',
            "the label 'gpu' is true, not a string: put its value in quotes",
        ),
        ("CAPTION_WINDOW_SIZE", "many", "integer"),
        ("CAPTION_WINDOW_SIZE", "3", "greater than or equal to 4"),
        ("CAPTION_WINDOW_SECONDS", "0", "greater than or equal to 0.1"),
        ("CAPTION_TEMPERATURE", "-1", "greater than or equal to 0"),
        ("CAPTION_TEMPERATURE", "nan", "less than or equal to 2"),
        ("CAPTION_TOP_P", "2", "less than or equal to 1"),
        ("CAPTION_RECIPE", "nowhere.yaml", "the recipe file nowhere.yaml does not exist"),
        ("CAPTION_MAX_FAILED_FRACTION", "1.5", "less than or equal to 1"),
        ("CAPTION_SHARDS_PER_RUN", "0", "greater than or equal to 1"),
        ("CAPTION_EXPORT_WHERE", "clip_second > 2", r"there is no column clip_second; did you mean .*clip_seconds"),
        (
            "CAPTION_EXPORT_CAPTION",
            '{"stage1_captions": 0}',
            "the weight of 'stage1_captions' is 0: give a number above",
        ),
        ("CAPTION_EXPORT_CAPTION", "{1}", "invalid JSON at line 1, column 2"),
        ("CAPTION_EXPORT_TOKENIZER", "t5", r"unknown tokenizer 't5': give a Hub id"),
        ("CAPTION_EXPORT_TOKENIZER", "google/umt5-xxl", "needs CAPTION_EXPORT_TOKENIZER_REVISION"),
        ("CAPTION_EXPORT_OVER_LIMIT", "trim", "'keep', 'cut', 'leave_out' or 'shorter'"),
        ("CAPTION_EXPORT_CUT", "sometimes", "Input should be 'none', 'exact' or 'remux'"),
        ("CAPTION_EXPORT_LONGEST_SIDE", "8", "greater than or equal to 16"),
        ("CAPTION_EXPORT_WHERE", "clip_seconds >", "syntax error at the end: complete the condition"),
    ],
)
def test_invalid_value_is_an_error_with_its_variable_and_remedy(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, remedy: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}={re.escape(repr(value))}: .*{remedy}"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CAPTION_EXPORT_FPS", "16"), ("CAPTION_EXPORT_SECONDS", "5"), ("CAPTION_EXPORT_AUDIO", "true")],
)
def test_option_of_window_files_without_them_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"{variable}={value} has no effect with CAPTION_EXPORT_CUT=none"):
        load_settings()
    monkeypatch.setenv("CAPTION_EXPORT", "pairs")  # its trainers need them
    assert load_settings().cut.cut is Cut.EXACT


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CAPTION_ROOT", "s3://AKIAPLANTED:planted@bucket/x"),
        ("CAPTION_SOURCE", "s3://AKIAPLANTED:planted@bucket/x"),
        ("CAPTION_MODEL", "s3://AKIAPLANTED:planted@bucket/x"),
        ("CAPTION_LORA", "s3://AKIAPLANTED:planted@bucket/x"),
        ("CAPTION_LINK_URL", "https://me:planted@host/browse"),
        ("CAPTION_GPU_IMAGE", "https://me:planted@registry/image"),
        ("CAPTION_MODEL", "hf_plantedplantedplantedplantedplanted"),
    ],
)
def test_url_with_credentials_is_an_error_without_them(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}=…: the URL contains credentials, .* remove them") as refused:
        load_settings()
    assert "planted" not in str(refused.value).lower()


@pytest.mark.parametrize(
    ("arguments", "where", "remedy"),
    [
        ('{"hf_token": "planted"}', "hf_token", "set HF_TOKEN"),
        ('{"hf-token": "planted"}', "hf-token", "set HF_TOKEN"),
        ('{"max_num_seqs": 8, "x": "hf_plantedplantedplantedplantedplanted"}', "x", "set HF_TOKEN"),
        ('{"a": {"password": "planted"}}', "a.password", "set the environment variable"),
        ('{"a": [{"apiKey": "planted"}]}', r"a\[0\].apiKey", "set the environment variable"),
        ('{"AWS_SECRET_ACCESS_KEY": "planted"}', "AWS_SECRET_ACCESS_KEY", "set the environment variable"),
        ('{"secrets": ["planted"]}', r"secrets\[0\]", "set the environment variable"),
        ('{"auth": {"user": "planted"}}', "auth.user", "set the environment variable"),
        ('{"url": "https://me:planted@host"}', "url", "set the environment variable"),
    ],
)
def test_credentials_in_engine_arguments_are_an_error_without_them(
    monkeypatch: pytest.MonkeyPatch, arguments: str, where: str, remedy: str
) -> None:
    monkeypatch.setenv("CAPTION_ENGINE_ARGS", arguments)
    with pytest.raises(
        SettingsError, match=f"^CAPTION_ENGINE_ARGS=…: {where} is a credential, .*: remove it, and {remedy}"
    ) as refused:
        load_settings()
    assert "planted" not in str(refused.value).lower()


def test_engine_arguments_that_change_captions_change_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    default = load_settings().caption_recipe
    monkeypatch.setenv("CAPTION_MAX_BATCHED_TOKENS", "512")
    monkeypatch.setenv("CAPTION_ENGINE_ARGS", '{"max_num_seqs": 8}')
    assert load_settings().caption_recipe.version(STAGE1) == default.version(STAGE1)
    assert load_settings().caption_recipe.engine == {"max_num_batched_tokens": 512, "max_num_seqs": 8}
    monkeypatch.setenv("CAPTION_ENGINE_ARGS", '{"kv_cache_dtype": "fp8", "max_num_batched_tokens": 64}')
    assert load_settings().caption_recipe.version(STAGE1) != default.version(STAGE1)
    assert load_settings().caption_recipe.engine == {"max_num_batched_tokens": 64, "kv_cache_dtype": "fp8"}


def test_error_for_invalid_json_does_not_contain_its_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ENGINE_ARGS", '{"hf_token": "planted"')
    with pytest.raises(SettingsError, match=r"^CAPTION_ENGINE_ARGS=…: invalid JSON at line 1, column 23") as refused:
        load_settings()
    assert "planted" not in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        '{"tokenizer_mode": "auto", "max_num_batched_tokens": 8}',
        '{"hf_token": true}',
        '{"hf_overrides": {"image_token": "<|image_pad|>", "image_token_id": 5}}',
    ],
)
def test_names_similar_to_credentials_are_accepted(monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    monkeypatch.setenv("CAPTION_ENGINE_ARGS", arguments)
    assert load_settings().engine_args == json.loads(arguments)


@pytest.mark.parametrize(
    ("variable", "value", "other"),
    [
        ("CAPTION_REMAINDER_THRESHOLD", "999", "CAPTION_WINDOW_SIZE=256"),
        ("CAPTION_MIN_FRAMES", "1000", "CAPTION_MAX_FRAMES=768"),
    ],
)
def test_contradictory_values_are_an_error_with_both_settings(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, other: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}={value} is above {other}: lower"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CAPTION_MODLE", "CAPTION_MODEL"),
        ("CAPTION_MAX_TOKENS", "CAPTION_EXPORT_MAX_TOKENS"),
        ("CAPTION_FPS", "CAPTION_EXPORT_FPS or CAPTION_SAMPLE_FPS"),
        ("CAPTION_NUM_WORKERS", "CAPTION_DECODE_WORKERS"),
        ("CAPTION_MODEL_NAME", "CAPTION_MODEL"),
        ("CAPTION_ASSETS_MODEL", "CAPTION_MODEL"),
        ("CAPTIONS_MODEL", "CAPTION_MODEL"),
        ("CAPTIION_MODEL", "CAPTION_MODEL"),
        ("CATPION_MODEL", "CAPTION_MODEL"),
        ("CAPTON_ENGINE_ARGS", "CAPTION_ENGINE_ARGS"),
        ("CAPTIONS_MODLE", "CAPTION_MODEL"),
        ("CAPTION__MODEL", "CAPTION_MODEL"),
        ("CAPTIONMODEL", "CAPTION_MODEL"),
        ("CAPTION-MODEL", "CAPTION_MODEL"),
        ("CAPTION-ASSETS_MODEL", "CAPTION_MODEL"),
        ("caption_model", "CAPTION_MODEL"),
        ("caption_modle", "CAPTION_MODEL"),
        ("CAPTION_METRIC_PORT", "CAPTION_METRICS_PORT"),
    ],
)
def test_misspelled_setting_is_an_error_with_suggestions(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "9090")
    with pytest.raises(SettingsError, match=rf"^Unknown setting {variable}; did you mean {meant}( or [A-Z0-9_]+)*\?"):
        load_settings()


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_renamed_setting_is_an_error_with_the_new_name(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    assert new.removeprefix(PREFIX).lower() in Settings.model_fields
    monkeypatch.setenv(old, "1")
    with pytest.raises(SettingsError, match=f"^Unknown setting {old}; it is now {new}$"):
        load_settings()


def test_all_problems_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODLE", "qwen")
    monkeypatch.setenv("CAPTION_TOP_P", "2")
    with pytest.raises(SettingsError, match=r"^Unknown setting CAPTION_MODLE; .*; CAPTION_TOP_P='2': "):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CAPTION_ASSETS_SERVICE_HOST", "10.0.0.1"),
        ("CAPTION_ASSETS_SERVICE_PORT", "80"),
        ("CAPTION_ASSETS_SERVICE_PORT_METRICS", "80"),
        ("CAPTION_METRIC_PORT", "tcp://10.0.0.1:9090"),
        ("CAPTION_METRICS_PORT", "tcp://10.0.0.1:9090"),
        ("CAPTION_METRICS_PORT_9090_TCP_PORT", "9090"),
        ("CAPTION_CACHE_PORT_9090_UDP_ADDR", "10.0.0.1"),
        ("CAPTIONING_SERVICE_HOST", "10.0.0.1"),
        ("CAPTIONING_QUEUE", "jobs"),
        ("CAPTIONS_ROUTE", "/"),
        ("CAPTAIN_MODEL", "ship"),
        ("OPTION_MODEL", "x"),
        ("caption_text", "Hello"),
        ("CAPTION_MODLE", ""),
    ],
)
def test_variables_of_other_programs_are_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert (settings.model, settings.metrics_port) == ("sample", None)
    assert not caplog.text


@pytest.mark.parametrize("variable", ["CAPTION_HUMOR", "CAPTION_TEXT", "CAPTION_DB_HOST"])
def test_unknown_variable_with_the_prefix_causes_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    monkeypatch.setenv(variable, "x")
    assert load_settings().model == "sample"
    assert f"Ignored the unknown setting {variable};" in caplog.text


def test_anonymous_requester_pays_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_S3_ANONYMOUS", "true")
    monkeypatch.setenv("CAPTION_S3_REQUESTER_PAYS", "true")
    with pytest.raises(SettingsError, match=r"^CAPTION_S3_ANONYMOUS and CAPTION_S3_REQUESTER_PAYS are both true"):
        load_settings()


def test_unknown_model_is_an_error_with_the_known_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODEL", "gpt")
    with pytest.raises(
        SettingsError, match=r"^CAPTION_MODEL='gpt': .*choose one of .*qwen, qwen2\.5, .*qwen3, .*sample"
    ):
        load_settings()


def test_adapter_needs_a_revision_and_is_part_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().caption_recipe.lora is None
    monkeypatch.setenv("CAPTION_LORA", "someone/adapter")
    with pytest.raises(SettingsError, match=r"^CAPTION_LORA='someone/adapter': .*needs CAPTION_LORA_REVISION"):
        load_settings()
    monkeypatch.setenv("CAPTION_LORA_REVISION", "5" * 40)
    settings = load_settings()
    assert settings.caption_recipe.lora == Lora("someone/adapter", "5" * 40)
    assert settings.checkpoints == (settings.variant, settings.caption_recipe.lora)
    monkeypatch.delenv("CAPTION_LORA")
    with pytest.raises(SettingsError, match="CAPTION_LORA_REVISION is set without an adapter"):
        load_settings()


def test_recipe_is_a_name_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAPTION_RECIPE", "driving")
    assert load_settings().caption_recipe.graph is built_in("driving")
    file = tmp_path / "mine.yaml"
    file.write_text("stages:\n  - name: look\n    prompt: Look.\n")
    monkeypatch.setenv("CAPTION_RECIPE", str(file))
    graph = load_settings().caption_recipe.graph
    assert (graph.name, [stage.name for stage in graph.stages]) == ("mine", ["look"])


def test_invalid_recipe_file_is_an_error_with_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("stages:\n  - name: look\n")
    monkeypatch.setenv("CAPTION_RECIPE", str(file))
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == f"CAPTION_RECIPE={str(file)!r}: {file}:2: `prompt` is missing: add it"


def test_url_of_a_recipe_with_credentials_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_RECIPE", "s3://key:secret@bucket/mine.yaml")
    with pytest.raises(SettingsError, match=r"^CAPTION_RECIPE=…: the URL contains credentials"):
        load_settings()


@pytest.mark.parametrize("variable", sorted(IN_RECIPES))
def test_prompt_of_an_earlier_release_is_an_error_that_names_the_recipe(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "Say what you see.")
    expected = f"^Unknown setting {variable}; prompts are now in a recipe file: .* set CAPTION_RECIPE to it$"
    with pytest.raises(SettingsError, match=expected):
        load_settings()


def test_engine_arguments_are_parsed_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ENGINE_ARGS", '{"max_num_seqs": 8}')
    assert load_settings().engine_args == {"max_num_seqs": 8}


def test_deterministic_overrides_sampling_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_DETERMINISTIC", "true")
    monkeypatch.setenv("CAPTION_TEMPERATURE", "0.9")
    generation = load_settings().caption_recipe.generation
    assert (generation.temperature, generation.seed) == (0.0, 0)


def test_settings_set_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODEL", "qwen")
    monkeypatch.setenv("CAPTION_RECIPE", "surveillance")
    monkeypatch.setenv("CAPTION_SAMPLE_FPS", "1")
    monkeypatch.setenv("CAPTION_TEMPERATURE", "0")
    recipe = load_settings().caption_recipe
    assert recipe.fp8
    assert recipe.graph.name == "surveillance"
    assert recipe.frames.fps == 1
    assert recipe.generation.temperature == 0


@pytest.mark.parametrize(("name", "dtype"), [("half", "float16"), ("bfloat16", "bfloat16"), ("float", "float32")])
def test_dtype_aliases_are_canonicalized(monkeypatch: pytest.MonkeyPatch, name: str, dtype: str) -> None:
    monkeypatch.setenv("CAPTION_DTYPE", name)
    assert load_settings().caption_recipe.dtype == dtype


def test_reasoning_and_dtype_are_unset_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().caption_recipe == Recipe()
    monkeypatch.setenv("CAPTION_CHAT_TEMPLATE_KWARGS", '{"enable_thinking": true}')
    monkeypatch.setenv("CAPTION_REASONING_PARSER", "qwen3")
    recipe = load_settings().caption_recipe
    assert (recipe.chat_template_kwargs, recipe.reasoning_parser) == ({"enable_thinking": True}, "qwen3")


def test_model_given_by_folder_keeps_its_own_sampling_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODEL", "/models/mine")
    monkeypatch.setenv("CAPTION_MODEL_REVISION", "v1")
    monkeypatch.setenv("CAPTION_TEMPERATURE", "0.3")
    assert load_settings().caption_recipe.generation == SamplingParams(0.3, None, None)
    monkeypatch.setenv("CAPTION_MODEL_LIKE", "qwen2.5")
    assert load_settings().caption_recipe.generation == SamplingParams(0.3)


def test_window_length_can_be_set_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().windowing.seconds is None
    monkeypatch.setenv("CAPTION_WINDOW_SECONDS", "10")
    assert load_settings().windowing.seconds == 10


def test_default_source_is_below_the_root() -> None:
    assert Settings(root="s3://bucket/prefix/").source_url == "s3://bucket/prefix/shards"


@pytest.mark.parametrize(
    ("root", "link_url", "expected"),
    [
        ("/captions", None, LOCAL_LINK_URL),
        ("file:///captions", None, LOCAL_LINK_URL),
        ("s3://captions", None, None),
        ("s3://captions", "https://captions.example.com", "https://captions.example.com"),
        ("/captions", "http://127.0.0.1:3002", "http://127.0.0.1:3002"),
    ],
)
def test_links_of_a_local_root_begin_with_a_fixed_address(
    root: str, link_url: str | None, expected: str | None
) -> None:
    assert Settings(root=root, link_url=link_url).web_url == expected


def test_texts_of_the_export_are_stages_with_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(value: str) -> object:
        monkeypatch.setenv("CAPTION_EXPORT_CAPTION", value)
        dataset = load_settings(export="jsonl", recipe="general").dataset
        return dataset and dict(dataset.text_weights)

    assert weights("") == {"stage2_captions": 1.0}
    with pytest.raises(SettingsError, match="CAPTION_EXPORT_CAPTION names 'poem': the recipe's stages are stage1_"):
        weights("poem")
    assert weights("stage1_captions") == {"stage1_captions": 1.0}
    assert weights('{"stage1_captions": 1, "stage2_captions": 3}') == {"stage1_captions": 1.0, "stage2_captions": 3.0}


def test_instruction_with_the_place_of_the_video_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"contains a tag such as <video>, .*: remove it"):
        load_settings(export_instruction="<video>What happens?")


def test_columns_of_the_export_are_checked_when_settings_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_EXPORT_COLUMNS", '{"text": "captoin"}')
    with pytest.raises(SettingsError, match=r"Unknown column 'captoin' .*did you mean caption"):
        load_settings(export="jsonl")
    with pytest.raises(SettingsError, match="no effect with CAPTION_EXPORT=ltx: unset it, or set CAPTION_EXPORT to"):
        load_settings(export="ltx")


@pytest.mark.parametrize(
    ("format", "root", "folder", "path"),
    [
        ("ltx", "/data", None, "data/a.mp4"),
        ("musubi", "/data", None, "/data/captioned_dataset/data/a.mp4"),
        ("musubi", "s3://bucket/data", None, "data/a.mp4"),
        ("ltx", "s3://bucket/data", "/mnt/dataset/", "/mnt/dataset/data/a.mp4"),
    ],
)
def test_paths_of_lines_are_those_that_the_trainer_needs(format: str, root: str, folder: str | None, path: str) -> None:
    dataset = load_settings(export=format, root=root, export_folder=folder).dataset
    assert dataset is not None
    assert dataset.trainer_path("data/a.mp4") == path
