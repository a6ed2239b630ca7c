"""What goes wrong before an engine is needed; the runs themselves are in ``tests/test_command_line.py``."""

import pytest

from tests.assets.conftest import Project


@pytest.mark.fast
def test_captions_without_weights_say_what_to_materialize(project: Project) -> None:
    project.run("shard_index")
    message = project.failure("stage1_captions", "stage2_captions", partition="sample-tar")
    assert "materialize model_weights before the captions" in message
