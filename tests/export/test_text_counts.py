from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_assets.export.text_counts import CountFiles, TextCounts, TextTotals, hash_text
from caption_assets.store.root import Root

pytestmark = pytest.mark.fast

CAR, BUS = hash_text("A car."), hash_text("A bus.")


@pytest.fixture
def files(tmp_path: Path) -> CountFiles:
    return CountFiles(Root.open(str(tmp_path)), "selection")


def counts(**numbers: int) -> TextCounts:
    return TextCounts.of({hash_text(f"A {name}."): number for name, number in numbers.items()}, "A car.")


def test_case_and_punctuation_do_not_matter() -> None:
    assert hash_text("A red car.") == hash_text("a red CAR") != hash_text("A red bus.")


def test_shards_are_summed_from_their_files(files: CountFiles) -> None:
    files.write("one", "v1", counts(car=3, bus=1))
    files.write("two", "v1", counts(car=2))
    totals = files.sum({"one": "v1", "two": "v1"})
    assert (totals.windows_with(CAR), totals.shards_with(CAR)) == (5, 2)
    assert (totals.windows_with(BUS), totals.shards_with(BUS)) == (1, 1)
    assert (totals.total, totals.windows_with(hash_text("A dog."))) == (6, 0)
    again = files.totals()
    assert (again.versions, again.windows_with(CAR)) == ({"one": "v1", "two": "v1"}, 5)


def test_changed_shard_replaces_its_counts_and_its_file(files: CountFiles) -> None:
    files.write("one", "v1", counts(car=3))
    files.write("two", "v1", counts(car=2))
    files.sum({"one": "v1", "two": "v1"})
    files.write("one", "v2", counts(bus=4))
    totals = files.sum({"one": "v2", "two": "v1"})
    assert (totals.windows_with(CAR), totals.windows_with(BUS)) == (2, 4)
    assert files.counted() == {("one", "v2"), ("two", "v1")}


def test_older_counts_are_summed_until_there_are_new_ones(files: CountFiles) -> None:
    files.write("one", "v1", counts(car=3))
    assert files.sum({"one": "v2"}).windows_with(CAR) == 3


def test_retired_shard_is_subtracted(files: CountFiles) -> None:
    files.write("one", "v1", counts(car=3))
    files.write("two", "v1", counts(car=2))
    files.sum({"one": "v1", "two": "v1"})
    assert files.sum({"two": "v1"}).windows_with(CAR) == 2
    assert files.counted() == {("two", "v1")}


def test_shard_that_a_concurrent_export_does_not_know_is_added_by_the_next(files: CountFiles) -> None:
    files.write("one", "v1", counts(car=3))
    before = files.sum({"one": "v1", "two": "v1"}).to_bytes()
    files.write("two", "v1", counts(car=2))
    files.sum({"one": "v1", "two": "v1"})
    files.root.write(f"{files.folder}/total.npz", before)  # the other export began earlier and ends later
    assert files.sum({"one": "v1", "two": "v1"}).windows_with(CAR) == 5


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"text"])
def test_damaged_sum_is_made_again(files: CountFiles, damage: bytes) -> None:
    files.write("one", "v1", counts(car=3))
    files.sum({"one": "v1"})
    files.root.write(f"{files.folder}/total.npz", damage)
    assert files.sum({"one": "v1"}).windows_with(CAR) == 3


def test_sum_whose_files_are_gone_is_made_again(files: CountFiles) -> None:
    files.write("one", "v1", counts(car=3))
    files.sum({"one": "v1"})
    files.root.remove(f"{files.folder}/v1-one.npz")
    files.write("one", "v2", counts(bus=1))
    totals = files.sum({"one": "v2"})
    assert (totals.windows_with(CAR), totals.windows_with(BUS)) == (0, 1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 2**64 - 1), st.integers(1, 50), max_size=8), max_size=5))
def test_sum_is_independent_of_the_order_and_never_too_small(shards: list[dict[int, int]]) -> None:
    forward, backward = TextTotals(), TextTotals()
    for totals, order in ((forward, range(len(shards))), (backward, reversed(range(len(shards))))):
        for number in order:
            totals.add(str(number), "v1", TextCounts.of(shards[number]))
    for text in {text for shard in shards for text in shard}:
        exact = sum(shard.get(text, 0) for shard in shards)
        assert exact <= forward.windows_with(text) == backward.windows_with(text)
    for number, shard in enumerate(shards):
        forward.subtract(str(number), TextCounts.of(shard))
    assert not forward.windows.any()
    assert not forward.shards.any()
    assert not forward.versions
