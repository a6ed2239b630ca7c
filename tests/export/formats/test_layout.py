import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caption_assets.export.clip import CaptionedClip
from caption_assets.export.formats.layout import encode_record, sample_key
from tests.report.windows import window

pytestmark = pytest.mark.fast

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def clip(key: str, shard: str = "shard") -> CaptionedClip:
    return CaptionedClip(shard, window(key), (), ())


@given(NAMES)
@example("../../etc/passwd")
@example("a.b/c.d.mp4")
@example("-rf\n.json")
def test_sample_key_contains_no_untrusted_text(key: str) -> None:
    assert re.fullmatch("[0-9a-f]{24}", sample_key(clip(key)))


@given(NAMES, NAMES)
def test_sample_keys_are_unique(one: str, other: str) -> None:
    assert (sample_key(clip(one)) == sample_key(clip(other))) == (one == other)
    assert sample_key(clip(one)) != sample_key(clip(one, "another shard"))
    changed = replace(clip(one), row=window(one, content_tag="another tag"))
    assert sample_key(clip(one)) != sample_key(changed)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_record_is_one_line(caption: str) -> None:
    assert re.search(rb"[\r\n]", encode_record({"caption": caption})) is None
