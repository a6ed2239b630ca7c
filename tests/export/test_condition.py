from dataclasses import replace
from pathlib import Path

import pytest

from caption_assets.captioning.stages import Stage
from caption_assets.export.clip import open_tables
from caption_assets.export.condition import Condition, ConditionError
from caption_assets.store.corrections import Correction, Decision, save_corrections
from caption_assets.store.root import Root
from caption_assets.store.table_file import ROW_GROUP
from tests.export.shards import publish_captioned
from tests.report.windows import FOUR, SHARD, broken, captioned, failed, four_captions, publish, publish_four, window
from tests.stages import STAGES

pytestmark = pytest.mark.fast


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """An empty root."""
    return Root.open(str(tmp_path))


def selected(root: Root, sql: str, stages: tuple[Stage, ...] = FOUR.stages) -> list[bool]:
    condition = Condition(sql, stages)
    condition.check()
    with open_tables(root, SHARD, stages) as tables:
        return list(condition.select(tables))


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("alignment.score >= 0.6 and not list_has_any(dense_captions.flags, ['repetition','cut_off'])", True),
        ("score > 0.95", False),
        ("choice = 'yes' and probability > 0.5 and probabilities.no < 0.2", True),
        ("attributes.fields.camera.motion = 'static' and list_contains(fields.subjects, 'a car')", True),
        ("width > 100", False),
        ("clip_manifest.clip_seconds = 4 and clip_seconds = 4 and window_index = 0 and shard = 'shard'", True),
        ("lower(dense_captions.caption) like '%red%'  -- the color", True),
        ("alignment.correction is null and alignment.correction_outdated is null", True),
        ("null", None),
    ],
)
def test_condition_uses_the_columns_of_all_tables(root: Root, sql: str, expected: bool | None) -> None:
    publish_four(root, [window("car.mp4")])
    if expected is None:
        with pytest.raises(ConditionError, match='the condition has the type "NULL"'):
            selected(root, sql)
    else:
        assert selected(root, sql) == [expected]


def test_rows_are_selected_in_order_over_more_than_one_part(root: Root) -> None:
    count = 2 * ROW_GROUP + 10
    rows = [window(f"{number}.mp4", width=number) for number in range(count)]
    publish_captioned(root, rows)
    assert selected(root, "width % 3 = 0 or stage1_captions.caption like '% 7.mp4%'", STAGES) == [
        number % 3 == 0 or number == 7 for number in range(count)
    ]


def test_null_is_not_selected(root: Root) -> None:
    car, torn = window("car.mp4"), broken("torn.mp4")
    publish(root, [car, torn], [captioned(car, "A car."), failed(torn)], [captioned(car, "A car."), failed(torn)])
    assert selected(root, "clip_seconds > 1", STAGES) == [True, False]
    assert selected(root, "not (clip_seconds > 1)", STAGES) == [False, False]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("alignment.scor > 1", r"table alignment has no column scor; did you mean alignment\.score"),
        ("scor > 1", r"there is no column scor; did you mean alignment\.score"),
        ("clip_secnds > 1", r"did you mean clip_manifest\.clip_seconds"),
        ("alignmnt.score > 1", r"there is no table alignmnt; did you mean alignment\?"),
        ("zzz > 1", r"there is no column zzz: use one of clip_manifest\.shard, "),
        ("caption = 'x'", r"Ambiguous reference to column name \"caption\" \(use: .*short\.caption"),
        ("attributes.fields.kamera = 'x'", r"Could not find key \"kamera\" in struct Candidate Entries: \"camera\""),
        ("nosuch(score) > 1", "Scalar Function with name nosuch does not exist"),
        ("score > 1 and and width > 1", r'syntax error at or near "and" \(character 15\): correct the SQL'),
        ("score >", "syntax error at the end: complete the condition"),
        (" ", "the condition is empty: write one"),
        ("width", "the condition has the type INTEGER: write a comparison"),
        ("true; drop table alignment", r'syntax error at or near ";" \(character 5\)'),
        ("true), (false", "more than one condition: connect conditions with AND or OR"),
        ("true) union select (false", "more than one condition"),
        ("true) from alignment where (true", "more than one condition"),
        ("sum(score) > 1", "cannot contain aggregates"),
        ("row_number() over () > 1", "cannot contain window functions"),
        ("score > (select avg(score) from alignment)", "a subquery is not possible"),
        ("(select count(*) from read_text('/etc/passwd')) > 0", "a subquery is not possible"),
        ("random() > 0.5", r"the result of random changes from call to call.*compare hash\(window_id\)"),
        ("today() > '2020-01-01'", "the result of today changes"),
        ("current_date > '2020-01-01'", "the result of current_date changes"),
        ("width > $1", "a parameter is not possible: write its value"),
        ("columns(*) is not null", "several columns at once is not possible: name each column"),
        ("columns('width|height') > 100", "several columns at once is not possible"),
        ("score > 'abc'", "Could not convert string 'abc' to DOUBLE"),
    ],
)
def test_unusable_condition_is_explained(sql: str, message: str) -> None:
    with pytest.raises(ConditionError, match=message) as error:
        Condition(sql, FOUR.stages).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sql",
    [
        "hash(window_id) % 10 = 0",
        "len(list_filter(dense_captions.flags, lambda flag: flag <> 'meta')) = 0",
        "case when clip_fps > 30 then width >= 1280 else true end",
        "json_extract_string(extra, '$.source') in ('a', 'b')",
        "regexp_matches(short.caption, '^A ')",
    ],
)
def test_functions_of_sql_can_be_used(sql: str) -> None:
    Condition(sql, FOUR.stages).check()


def test_value_that_cannot_be_converted_names_the_shard(root: Root) -> None:
    publish_four(root, [window("car.mp4")])
    with pytest.raises(ConditionError, match=r"Could not convert string 'A car\.' to INT32.*\(in shard 'shard'\)"):
        selected(root, "short.caption::int > 1")


def test_corrections_are_columns_and_rewrites_are_the_captions(root: Root) -> None:
    rows = [window(name) for name in ("car.mp4", "van.mp4", "bus.mp4")]
    publish_four(root, rows)
    car, van, _ = (four_captions(row)["dense_captions"] for row in rows)
    save_corrections(
        root,
        SHARD,
        [
            Correction.of(car, "dense_captions", Decision.REWRITE, "me", caption="A blue car."),
            Correction.of(replace(van, caption="Another text."), "dense_captions", Decision.ACCEPT, "me"),
        ],
    )
    assert selected(root, "dense_captions.caption = 'A blue car.'") == [True, False, False]
    assert selected(root, "dense_captions.correction = 'rewrite'") == [True, False, False]
    assert selected(root, "dense_captions.correction_outdated") == [False, True, False]
    assert selected(root, "dense_captions.correction is null") == [False, False, True]
    assert selected(root, "short.correction is null") == [True, True, True]


@pytest.mark.parametrize("name", ["root_schema_version_2", "root_before_window_job"])
@pytest.mark.parametrize("sql", ["stage1_captions.lora is null and len(window_id) > 0", "shard = 'shard'"])
def test_tables_of_earlier_releases_can_be_selected_from(name: str, sql: str) -> None:
    fixture = Root.open(str(Path(__file__).parents[1] / "fixtures" / name))
    with open_tables(fixture, "shard", STAGES) as tables:
        rows = sum(1 for _ in tables.windows())
        found = list(Condition(sql, STAGES).select(tables))
    assert found == [True] * rows
