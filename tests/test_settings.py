import re

import pytest

from caption_assets.captioning.prompts import GENERAL, PROMPTS
from caption_assets.settings import Settings, SettingsError, load_settings

pytestmark = pytest.mark.fast


def test_nothing_need_be_set() -> None:
    settings = load_settings()
    assert (settings.root, settings.source_url, settings.model) == ("data", "data/shards", "sample")
    assert settings.recipe.prompt is GENERAL


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("CAPTION_PROMPT", "poem", "choose one of general, driving, surveillance"),
        ("CAPTION_ENGINE_ARGS", "[1]", "dictionary"),
        ("CAPTION_WINDOW_SIZE", "many", "integer"),
        ("CAPTION_WINDOW_SIZE", "3", "greater than or equal to 4"),
        ("CAPTION_WINDOW_SECONDS", "0", "greater than or equal to 0.1"),
        ("CAPTION_TEMPERATURE", "-1", "greater than or equal to 0"),
        ("CAPTION_TEMPERATURE", "nan", "less than or equal to 2"),
        ("CAPTION_TOP_P", "2", "less than or equal to 1"),
        ("CAPTION_STAGE1_PROMPT", " ", "empty"),
        ("CAPTION_STAGE2_PROMPT", "no slot", "exactly once"),
        ("CAPTION_MAX_FAILED_FRACTION", "1.5", "less than or equal to 1"),
        ("CAPTION_SHARDS_PER_RUN", "0", "greater than or equal to 1"),
    ],
)
def test_a_bad_value_is_named_with_its_variable_and_remedy(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, remedy: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}='{re.escape(value)}': .*{remedy}"):
        load_settings()


@pytest.mark.parametrize("variable", ["CAPTION_ROOT", "CAPTION_SOURCE"])
def test_a_url_with_credentials_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "s3://AKIAPLANTED:planted@bucket/x")
    with pytest.raises(SettingsError, match=f"^{variable}=…: the URL holds credentials: give s3://bucket") as refused:
        load_settings()
    assert "planted" not in str(refused.value).lower()


@pytest.mark.parametrize(
    ("variable", "value", "other"),
    [
        ("CAPTION_REMAINDER_THRESHOLD", "999", "CAPTION_WINDOW_SIZE=256"),
        ("CAPTION_MIN_FRAMES", "1000", "CAPTION_MAX_FRAMES=768"),
    ],
)
def test_values_that_do_not_fit_together_are_both_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, other: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}={value} is above {other}: lower"):
        load_settings()


def test_a_misspelt_setting_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODLE", "qwen")
    with pytest.raises(SettingsError, match="CAPTION_MODLE is no setting: CAPTION_MODEL is"):
        load_settings()


def test_other_variables_of_the_prefix_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ASSETS_SERVICE_HOST", "10.0.0.1")
    assert load_settings().model == "sample"


def test_an_unknown_model_is_named_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODEL", "gpt")
    with pytest.raises(SettingsError, match=r"^CAPTION_MODEL='gpt': .*choose one of qwen, qwen2\.5, qwen3, sample"):
        load_settings()


def test_a_named_prompt_may_have_one_text_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_PROMPT", "driving")
    assert load_settings().recipe.prompt is PROMPTS["driving"]
    monkeypatch.setenv("CAPTION_STAGE1_PROMPT", "Say what you see.")
    prompt = load_settings().recipe.prompt
    assert (prompt.name, prompt.stage2) == ("custom", PROMPTS["driving"].stage2)


def test_engine_arguments_are_a_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ENGINE_ARGS", '{"max_num_seqs": 8}')
    assert load_settings().engine_args == {"max_num_seqs": 8}


def test_the_deterministic_mode_goes_before_the_sampling_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_DETERMINISTIC", "true")
    monkeypatch.setenv("CAPTION_TEMPERATURE", "0.9")
    generation = load_settings().recipe.generation
    assert (generation.temperature, generation.seed) == (0.0, 0)


def test_settings_reach_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODEL", "qwen")
    monkeypatch.setenv("CAPTION_STAGE1_PROMPT", "Say what you see.")
    monkeypatch.setenv("CAPTION_SAMPLE_FPS", "1")
    monkeypatch.setenv("CAPTION_TEMPERATURE", "0")
    recipe = load_settings().recipe
    assert recipe.fp8
    assert recipe.prompt.name == "custom"
    assert recipe.prompt.stage1 == "Say what you see."
    assert recipe.frames.fps == 1
    assert recipe.generation.temperature == 0


def test_windows_may_be_cut_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().windowing.seconds is None
    monkeypatch.setenv("CAPTION_WINDOW_SECONDS", "10")
    assert load_settings().windowing.seconds == 10


def test_an_s3_root_has_its_shards_below_it() -> None:
    assert Settings(root="s3://bucket/prefix/").source_url == "s3://bucket/prefix/shards"
