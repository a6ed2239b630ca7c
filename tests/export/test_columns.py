import pytest

from caption_assets.captioning.stages import Stage
from caption_assets.errors import CaptionAssetsError
from caption_assets.export.columns import stage_columns
from tests.report.windows import FOUR
from tests.stages import STAGES

pytestmark = pytest.mark.fast

SHARED = ("caption", "flags", "model", "revision", "lora", "lora_revision", "prompt_name", "correction")


def names(stages: tuple[Stage, ...]) -> list[str]:
    return [column.name for columns in stage_columns(stages) for column in columns.columns.values()]


def test_columns_of_the_default_recipe_keep_their_names() -> None:
    assert names(STAGES) == [*(f"stage1_{name}" for name in SHARED), *(f"stage2_{name}" for name in SHARED)]


def test_columns_follow_the_output_of_a_stage() -> None:
    assert names(FOUR.stages) == [
        *(f"short_{name}" for name in SHARED),
        *(f"dense_{name}" for name in SHARED),
        *(f"attributes_{name}" for name in (*SHARED, "fields")),
        *(f"alignment_{name}" for name in (*SHARED, "choice", "probability", "score")),
    ]


def test_fields_have_the_type_of_their_schema() -> None:
    [attributes] = stage_columns([FOUR.stage("attributes")])
    assert attributes.columns["fields"].feature == {
        "name": "attributes_fields",
        "struct": [
            {"name": "subjects", "list": "string"},
            {
                "name": "camera",
                "struct": [{"name": "motion", "dtype": "string"}, {"name": "shots", "dtype": "int64"}],
            },
        ],
    }


@pytest.mark.parametrize("other", ["short_captions", "short_lora"])
def test_stages_with_the_same_column_are_an_error(other: str) -> None:
    with pytest.raises(CaptionAssetsError, match=f"short and {other} both export a column short_.*: rename"):
        stage_columns([Stage("short", "Describe."), Stage(other, "Describe.")])
