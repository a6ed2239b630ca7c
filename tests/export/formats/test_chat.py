"""Chats about videos.

Sources: ms-swift docs/source_en/Customization/Custom-dataset.md; LLaMA-Factory data/README.md and
data/dataset_info.json; Qwen3-VL qwen-vl-finetune/README.md.
"""

import json

import pytest

from caption_assets.export.clip import TrainingText
from caption_assets.export.config import Format
from caption_assets.export.formats import layout_of
from tests.export.formats.clips import TEXT, clip_of, export_of, records_of, video_of

pytestmark = pytest.mark.fast


def test_messages_have_the_video_in_the_question_and_the_text_as_the_answer() -> None:
    assert records_of(export_of(Format.CHAT), clip_of(video_of("aa"))) == [
        {
            "messages": [
                {"role": "user", "content": "<video>Describe the video."},
                {"role": "assistant", "content": TEXT},
            ],
            "videos": ["data/shard=shard/aa.mp4"],
        }
    ]


def test_conversations_have_the_turns_of_qwens_finetuner() -> None:
    export = export_of(Format.CONVERSATIONS, instruction="What happens?")
    assert records_of(export, clip_of(video_of("aa"))) == [
        {
            "video": "data/shard=shard/aa.mp4",
            "conversations": [
                {"from": "human", "value": "<video>\nWhat happens?"},
                {"from": "gpt", "value": TEXT},
            ],
        }
    ]


@pytest.mark.parametrize("format", [Format.CHAT, Format.CONVERSATIONS])
def test_number_of_tags_is_that_of_the_videos_whatever_the_text_says(format: Format) -> None:
    clip = clip_of(video_of("aa"), texts=(TrainingText("stage2_captions", "The screen shows <video> and <image>."),))
    [found] = records_of(export_of(format), clip)
    assert json.dumps(found).count("<video>") == 1
    assert "The screen shows video and image." in json.dumps(found)


def test_merged_file_is_described_for_llama_factory() -> None:
    merged = layout_of(export_of(Format.CHAT)).merged
    assert merged is not None
    [described] = json.loads(merged.companions["dataset_info.json"]).values()
    assert (described["file_name"], described["formatting"]) == (merged.name, "sharegpt")
