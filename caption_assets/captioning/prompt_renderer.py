"""The renderer of prompts: the prompts and tokens of a model without its engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caption_assets.captioning.chat import Chat
from caption_assets.captioning.choices import Choices
from caption_assets.captioning.library_logs import quiet_libraries
from caption_assets.captioning.prompts import escape_special_tokens, structural_tokens
from caption_assets.captioning.stages import Stage


class PromptRenderer:
    """Renders the prompts of one model as its engine does. It reads the configuration and tokenizer, but no weights.

    Args:
        model: folder of the model's files.
        arguments: further arguments of the chat template.
        video: whether the model is shown videos.

    Raises:
        TemplateError: if the model has no chat template that renders a prompt.
    """

    def __init__(self, model: Path, arguments: Mapping[str, Any], *, video: bool) -> None:
        quiet_libraries()
        from vllm.config import ModelConfig
        from vllm.tokenizers import cached_tokenizer_from_config

        config = ModelConfig(model=str(model))
        self._tokenizer = cached_tokenizer_from_config(config)
        self._chat = Chat(config, self._tokenizer, arguments, video=video)
        self._special = structural_tokens(self._tokenizer)
        self.choices = Choices(self._tokenizer)

    def render(self, stage: Stage) -> str:
        """The prompt of a stage, with its slots."""
        return self._chat.render(escape_special_tokens(stage.prompt, self._special), video=stage.video)

    def tokens(self, stage: Stage) -> int:
        """Number of tokens of a stage's prompt, without the video and the texts of other stages."""
        instruction = escape_special_tokens(stage.instruction(dict.fromkeys(stage.needs, "")), self._special)
        prompt = self._chat.render(instruction, video=stage.video)
        return len(self._tokenizer.encode(prompt, add_special_tokens=False)) - (1 if stage.video else 0)


def check_json_schema(schema: Mapping[str, Any]) -> None:
    """Check that vLLM's structured outputs support a JSON Schema: with xgrammar, or else with llguidance.

    Raises:
        ValueError: if they do not.
    """
    quiet_libraries()
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.structured_output.backend_guidance import validate_guidance_grammar
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

    params = SamplingParams(structured_outputs=StructuredOutputsParams(json=dict(schema)))
    try:
        validate_xgrammar_grammar(params)
    except (VLLMValidationError, ValueError):
        try:
            validate_guidance_grammar(params, tokenizer=None)
        except VLLMValidationError as error:
            raise ValueError(" ".join(str(error).split())) from error  # some have several lines
