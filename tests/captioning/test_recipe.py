from dataclasses import replace

import pytest

from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.recipe import REFERENCE_OUTPUT_TOKENS, Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.sampling import DETERMINISTIC, SamplingParams
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.models.checkpoint import Lora
from caption_assets.models.variants import QWEN3, QWEN25, Variant
from caption_assets.store.tables import ManifestRow, Status
from caption_assets.video.frame_sampling import FrameSampling
from tests.stages import STAGE1, STAGE2, STAGES, two_stages, with_prompts

pytestmark = pytest.mark.fast

WINDOW = ManifestRow(
    "a.mp4",
    0,
    "id",
    "tag",
    10,
    Status.OK,
    width=1920,
    height=1080,
    start_frame=0,
    end_frame=256,
    start_seconds=0.0,
    end_seconds=8.53,
)
RECIPE = two_stages()
CAPTIONS = {STAGE1.name: "x"}
PROMPT_HASHES = {
    "general": ["5246b14402743d7e", "6208b526ef0432db"],
    "driving": ["e381ce98259f87a6", "aa244eb9122ea288"],
    "surveillance": ["67ce5e30f5322c14", "4cebdb478507a322"],
}
OTHER_STAGE1 = with_prompts(RECIPE, stage1_captions="Say what you see.")
OTHER_STAGE2 = with_prompts(RECIPE, stage2_captions="Again: {stage1_captions}")


def test_sample_model_has_its_own_stages() -> None:
    assert Recipe().graph is built_in("sample")
    assert Recipe(variant=QWEN25).graph is built_in("general")
    assert built_in("sample") is not built_in("general")


@pytest.mark.parametrize("recipe", ["general", "driving", "surveillance"])
def test_stages_of_earlier_releases_have_their_words(recipe: str) -> None:
    """Code versions and fingerprints contain these hashes."""
    assert [text_hash(stage.template) for stage in built_in(recipe).stages] == PROMPT_HASHES[recipe]


@pytest.mark.parametrize(
    "changed",
    [
        replace(RECIPE, variant=replace(RECIPE.variant, revision="2")),
        replace(RECIPE, variant=replace(RECIPE.variant, dtype="bfloat16")),
        replace(RECIPE, fp8=True),
        replace(RECIPE, regenerations=0),
        replace(RECIPE, dtype="float16"),
        replace(RECIPE, chat_template_kwargs={"enable_thinking": True}),
        replace(RECIPE, reasoning_parser="qwen3"),
        replace(RECIPE, frames=FrameSampling(fps=1)),
        replace(RECIPE, generation=SamplingParams(temperature=0.5)),
        OTHER_STAGE1,
    ],
)
def test_stage_1_settings_change_fingerprint_and_version(changed: Recipe) -> None:
    stage1 = changed.stages[0]
    assert changed.fingerprint(stage1, WINDOW) != RECIPE.fingerprint(STAGE1, WINDOW)
    assert changed.version(stage1) != RECIPE.version(STAGE1)


def test_default_output_limit_is_the_reference_one() -> None:
    assert SamplingParams().max_output_tokens == REFERENCE_OUTPUT_TOKENS


def test_unset_sampling_value_is_that_of_the_model_or_the_reference() -> None:
    left = SamplingParams(None, None, None, 64)
    assert left.with_defaults({"temperature": 0.7, "top_k": 20}, SamplingParams()) == SamplingParams(
        0.7, 0.001, 1.05, 64
    )
    assert SamplingParams(temperature=0.3).with_defaults({"temperature": 0.7}, SamplingParams()) == SamplingParams(
        temperature=0.3
    )


def test_stage_2_prompt_does_not_change_stage_1() -> None:
    stage1, stage2 = OTHER_STAGE2.stages
    assert OTHER_STAGE2.version(stage1) == RECIPE.version(STAGE1)
    assert OTHER_STAGE2.fingerprint(stage1, WINDOW) == RECIPE.fingerprint(STAGE1, WINDOW)
    assert OTHER_STAGE2.version(stage2) != RECIPE.version(STAGE2)


def test_stage_2_fingerprint_depends_on_the_stage_1_caption() -> None:
    red, blue = ({STAGE1.name: f"A {color} circle."} for color in ("red", "blue"))
    assert RECIPE.fingerprint(STAGE2, WINDOW, red) != RECIPE.fingerprint(STAGE2, WINDOW, blue)


@pytest.mark.parametrize(
    "changed", [{"content_tag": "new"}, {"start_frame": 1}, {"end_frame": 250}, {"prompt": "Say."}]
)
def test_window_and_content_change_the_fingerprint(changed: dict[str, int | str]) -> None:
    assert RECIPE.fingerprint(STAGE1, replace(WINDOW, **changed)) != RECIPE.fingerprint(STAGE1, WINDOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"repetition_penalty": 0},
        {"max_output_tokens": 0},
    ],
)
def test_sampling_value_out_of_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        SamplingParams(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "limit",
    [{"temperature": 0}, {"temperature": 2}, {"top_p": 1}, {"repetition_penalty": 0.1}, {"max_output_tokens": 1}],
)
def test_sampling_value_at_the_end_of_its_range_is_accepted(limit: dict[str, float]) -> None:
    [(name, value)] = limit.items()
    assert getattr(SamplingParams(**limit), name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.1, None])
def test_seed_without_temperature_zero_is_refused(temperature: float | None) -> None:
    with pytest.raises(ValueError, match="a seed needs temperature 0"):
        SamplingParams(temperature=temperature, seed=0)
    assert SamplingParams(temperature=0.0, seed=0).seed == 0


@pytest.mark.parametrize(
    ("variant", "stage1", "stage2"),
    [
        (QWEN25, "a04a24f0b7de4f778b14013e2b4fa7dc", "d741d6e404e82a2670936a27f8257471"),
        (QWEN3, "4b6b934e68882bcd0239932e1ece0a3d", "168be0c1ef4fef7350ed3f798b85dd90"),
    ],
)
def test_fingerprints_of_the_default_models_are_stable(variant: Variant, stage1: str, stage2: str) -> None:
    """Many stored captions have these fingerprints of earlier releases."""
    recipe = Recipe(variant, fp8=True)
    assert recipe.fingerprint(STAGE1, WINDOW) == stage1
    assert recipe.fingerprint(STAGE2, WINDOW, {STAGE1.name: "A red circle."}) == stage2


def test_fingerprints_with_further_settings_are_stable() -> None:
    """A change of one of these values would caption all windows with such settings again."""
    recipe = Recipe(
        QWEN25,
        frames=FrameSampling(fps=1.0),
        generation=SamplingParams(max_output_tokens=256),
        engine={"max_model_len": 4096, "max_num_batched_tokens": 8192},
        quality_rules=1,
    )
    assert recipe.fingerprint(STAGE1, WINDOW) == "7cabf5b595d53b36f52aac00a15701fd"
    assert recipe.fingerprint(STAGE1, WINDOW, reduced=True) == "ce602763483b96fb70a03930b29736fd"
    assert recipe.fingerprint(STAGE1, WINDOW, cut_off=True) == "86d5c791d46434cbeccba8622b858b6e"
    assert recipe.fingerprint(STAGE1, WINDOW, quality_rules=2) == "1822f23759faaaffca176349a1e39241"
    assert recipe.former_fingerprint(STAGE1, WINDOW) == "efc4294762de74e46094140c1212ee33"
    assert recipe.former_fingerprint(STAGE2, WINDOW, CAPTIONS) == "0fd5638044078ad97785734d09290c25"
    assert recipe.version(STAGE1) == "e96e3645e4647896"
    greedy = Recipe(QWEN25, generation=DETERMINISTIC)
    assert greedy.fingerprint(STAGE1, WINDOW) == "bc1ee9b6f636f5b95c04472ee9a487bd"
    tuned = replace(
        recipe,
        lora=Lora("some/adapter", "1"),
        lora_weights="11",
        weights="22",
        reasoning_parser="qwen3",
        chat_template_kwargs={"enable_thinking": True},
        engine={"kv_cache_dtype": "fp8"},
    )
    assert tuned.fingerprint(STAGE1, WINDOW) == "9e4bab2c421d8f3c729bdd7346d8210a"
    assert (tuned.version(STAGE1), tuned.version(STAGE2)) == ("7061e6baf6917a19", "2d326d5a9859bc89")


def with_arguments(**arguments: object) -> Recipe:
    return replace(RECIPE, engine=arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kv_cache_dtype": "fp8"},
        {"load_format": "dummy"},
        {"video_pruning_rate": 0.5},
        {"logits_processors": ["module:Processor"]},
        {"model_impl": "transformers"},
        {"hf_overrides": {"text_config": {"rope_theta": 5e5}}},
        {"seed": 7},
        {"an_argument_of_a_later_vllm": True},
    ],
)
def test_engine_arguments_that_may_change_captions_change_fingerprint_and_version(
    arguments: dict[str, object],
) -> None:
    changed = with_arguments(**arguments)
    for stage in STAGES:
        assert changed.version(stage) != RECIPE.version(stage)
        assert changed.fingerprint(stage, WINDOW, CAPTIONS) != RECIPE.fingerprint(stage, WINDOW, CAPTIONS)
    assert changed.former_fingerprint(STAGE1, WINDOW) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "max_num_seqs": 8},
        {"max_num_batched_tokens": 512, "enable_prefix_caching": False, "enforce_eager": True, "block_size": 16},
        {"disable_log_stats": True, "mm_processor_cache_gb": 1},
    ],
)
def test_neutral_engine_arguments_do_not_change_fingerprint_or_version(arguments: dict[str, object]) -> None:
    changed = with_arguments(**arguments)
    assert changed.version(STAGE1) == RECIPE.version(STAGE1)
    assert changed.fingerprint(STAGE1, WINDOW) == RECIPE.fingerprint(STAGE1, WINDOW)


@pytest.mark.parametrize(
    ("arguments", "context"),
    [({}, QWEN25.max_model_len), ({"max_model_len": 4096}, 4096), ({"max_model_len": "auto"}, None)]
    + [({"max_model_len": value}, None) for value in (None, 0, -1)],
)
def test_context_is_that_of_the_engine_arguments_or_the_variant(
    arguments: dict[str, object], context: int | None
) -> None:
    assert Recipe(QWEN25, engine=arguments).context == context


def test_instruction_of_a_stage_has_the_text_of_the_clip_or_the_caption() -> None:
    own = replace(WINDOW, prompt="Who is it?")
    assert RECIPE.instruction(STAGE1, WINDOW, {}) == STAGE1.prompt
    assert RECIPE.instruction(STAGE1, own, {}) == "Who is it?"
    assert OTHER_STAGE2.instruction(OTHER_STAGE2.stages[1], own, CAPTIONS) == "Again: x"


def test_instruction_has_the_duration_of_the_window() -> None:
    graph = StageGraph("timed", (Stage("events", "List the events of {seconds} seconds."),))
    timed = replace(RECIPE, graph=graph)
    window = replace(WINDOW, start_seconds=8.5, end_seconds=17.0)
    assert timed.instruction(graph.stages[0], window, {}) == "List the events of 8.5 seconds."
    assert timed.instruction(graph.stages[0], replace(window, prompt="{seconds}"), {}) == "{seconds}"


def test_context_changes_the_fingerprint_of_reduced_windows_only() -> None:
    short, long = with_arguments(max_model_len=1024), with_arguments(max_model_len=4096)
    assert short.fingerprint(STAGE1, WINDOW) == long.fingerprint(STAGE1, WINDOW) == RECIPE.fingerprint(STAGE1, WINDOW)
    reduced = {recipe.fingerprint(STAGE1, WINDOW, reduced=True) for recipe in (short, long, RECIPE)}
    assert len(reduced) == 3
    assert RECIPE.fingerprint(STAGE1, WINDOW) not in reduced
    assert short.version(STAGE1) != long.version(STAGE1)  # stored rows are checked again


def test_step_tokens_change_the_fingerprint_of_reduced_windows_only() -> None:
    small, large = with_arguments(max_num_batched_tokens=512), with_arguments(max_num_batched_tokens=8192)
    assert small.version(STAGE1) == large.version(STAGE1) == RECIPE.version(STAGE1)
    assert small.fingerprint(STAGE1, WINDOW) == large.fingerprint(STAGE1, WINDOW) == RECIPE.fingerprint(STAGE1, WINDOW)
    assert small.fingerprint(STAGE1, WINDOW, reduced=True) != large.fingerprint(STAGE1, WINDOW, reduced=True)
    usual = replace(RECIPE, variant=QWEN25, engine={"max_num_batched_tokens": 32768})
    assert usual.fingerprint(STAGE1, WINDOW, reduced=True) == replace(usual, engine={}).fingerprint(
        STAGE1, WINDOW, reduced=True
    )


def test_output_limit_changes_the_fingerprint_of_cut_off_and_reduced_windows_only() -> None:
    short, long = (replace(RECIPE, generation=SamplingParams(max_output_tokens=limit)) for limit in (64, 512))
    assert short.fingerprint(STAGE1, WINDOW) == long.fingerprint(STAGE1, WINDOW)
    assert short.fingerprint(STAGE1, WINDOW, cut_off=True) != long.fingerprint(STAGE1, WINDOW, cut_off=True)
    assert short.fingerprint(STAGE1, WINDOW, reduced=True) != long.fingerprint(STAGE1, WINDOW, reduced=True)
    assert short.version(STAGE1) != long.version(STAGE1)


def test_frame_limits_change_the_fingerprint_of_limited_windows_only() -> None:
    small = replace(WINDOW, width=320, height=240)
    for changed in (
        replace(QWEN25, pixels=replace(QWEN25.pixels, max_pixels=2 * QWEN25.pixels.max_pixels)),
        replace(QWEN25, pixels=replace(QWEN25.pixels, max_pixels=QWEN25.pixels.max_pixels // 2)),
    ):
        usual, other = Recipe(QWEN25), Recipe(changed)
        assert other.fingerprint(STAGE1, WINDOW) != usual.fingerprint(STAGE1, WINDOW)
        assert other.fingerprint(STAGE1, small) == usual.fingerprint(STAGE1, small)
    fewer = Recipe(QWEN25, frames=FrameSampling(max_frames=16))
    assert fewer.fingerprint(STAGE1, WINDOW) != Recipe(QWEN25).fingerprint(STAGE1, WINDOW)
    short = replace(WINDOW, end_frame=64, end_seconds=2.13)
    assert fewer.fingerprint(STAGE1, short) == Recipe(QWEN25).fingerprint(STAGE1, short)


def test_stage_1_prompt_does_not_change_the_fingerprint_of_clips_with_their_own() -> None:
    own, stage1 = replace(WINDOW, prompt="Who is it?"), OTHER_STAGE1.stages[0]
    assert OTHER_STAGE1.fingerprint(stage1, own) == RECIPE.fingerprint(STAGE1, own)
    assert OTHER_STAGE1.fingerprint(stage1, WINDOW) != RECIPE.fingerprint(STAGE1, WINDOW)
    assert RECIPE.fingerprint(STAGE1, replace(own, prompt="What is it?")) != RECIPE.fingerprint(STAGE1, own)
    # The prompt of stage 2 contains only the caption.
    assert RECIPE.fingerprint(STAGE2, own, CAPTIONS) == RECIPE.fingerprint(STAGE2, WINDOW, CAPTIONS)


def test_weights_change_the_fingerprint_and_not_the_version() -> None:
    recipe = replace(RECIPE, weights="1")
    other = replace(RECIPE, weights="2")
    for stage in STAGES:
        assert recipe.fingerprint(stage, WINDOW, CAPTIONS) != other.fingerprint(stage, WINDOW, CAPTIONS)
        assert recipe.version(stage) == other.version(stage)  # weights are an input of the asset


def test_captions_of_other_weights_or_adapters_have_no_former_fingerprint() -> None:
    assert replace(RECIPE, weights="1").former_fingerprint(STAGE1, WINDOW) is None
    assert replace(RECIPE, lora=Lora("some/adapter", "1")).former_fingerprint(STAGE1, WINDOW) is None
    assert with_arguments(max_model_len=1024).former_fingerprint(STAGE1, WINDOW) is not None


TEN_SECONDS = replace(WINDOW, width=1280, height=720, end_frame=250, end_seconds=10.0)


@pytest.mark.parametrize("variant", [QWEN25, QWEN3])
def test_predicted_tokens_are_one_for_each_square_of_each_pair_of_frames(variant: Variant) -> None:
    tokens = Recipe(variant=variant).predicted_tokens(TEN_SECONDS)
    assert tokens % 10 == 0  # ten pairs of frames
    assert 0.8 * 768 < tokens / 10 <= 768


def test_predicted_tokens_grow_with_the_frame_rate_up_to_the_models_limit() -> None:
    recipes = (Recipe(variant=QWEN25, frames=FrameSampling(fps=fps)) for fps in (1.0, 2.0, 25.0))
    one, two, many = (recipe.predicted_tokens(TEN_SECONDS) for recipe in recipes)
    assert two == 2 * one
    assert 0.9 * 24576 // 2 < many <= 24576 // 2


def test_predicted_tokens_of_a_later_window_are_those_of_its_own_length() -> None:
    first = replace(WINDOW, width=320, height=240, end_frame=100, end_seconds=4.0)
    later = replace(first, start_frame=2500, end_frame=2600, start_seconds=100.0, end_seconds=104.0)
    for sampling in (FrameSampling(), FrameSampling(fps=50.0, max_frames=400)):  # the clip has fewer than 50
        recipe = Recipe(QWEN25, frames=sampling)
        assert recipe.predicted_tokens(later) == recipe.predicted_tokens(first) > 0


def test_predicted_tokens_of_windows_that_are_not_captioned_are_zero() -> None:
    failed = ManifestRow("a.mp4", None, "id", "tag", 10, Status.FAILED, error_kind="damaged", error="it is")
    assert Recipe(variant=QWEN25).predicted_tokens(failed) == 0
    assert Recipe(variant=QWEN25).predicted_tokens(replace(WINDOW, width=4, height=4000)) == 0
