"""The chat template of a model: renders the prompt for an instruction, and for a video if there is one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from caption_assets.errors import CaptionAssetsError

NO_THINKING = {"enable_thinking": False, "thinking": False}
"""Template arguments that switch reasoning off, where a template supports them: Qwen3.5's and GLM's, and Kimi's."""
_MARK = "caption-assets-instruction"
"""Text that no template contains, to find the position of the instruction in a prompt."""


class TemplateError(CaptionAssetsError):
    """A chat template that cannot render a prompt for a video, or does not support an argument."""


class Chat:
    """Renders prompts with a model's chat template: its processor's, or else its tokenizer's.

    Args:
        model_config: vLLM's configuration of the model.
        tokenizer: the model's tokenizer.
        arguments: further arguments of the template, such as ``enable_thinking``.
        video: whether the model is shown videos.

    Raises:
        TemplateError: if there is no template, it does not support an argument, or it drops the instruction.
    """

    def __init__(self, model_config: Any, tokenizer: Any, arguments: Mapping[str, Any], *, video: bool = True) -> None:
        from vllm.renderers.hf import resolve_chat_template, resolve_chat_template_content_format

        self._tokenizer, self._video = tokenizer, video
        template = _default(resolve_chat_template(tokenizer, None, None, model_config=model_config))
        if template is None:
            raise TemplateError(
                "the model has no default chat template: choose a model that was trained on instructions"
            )
        self._template = template
        self.arguments = {**self._supported(NO_THINKING), **self._checked(arguments)}
        form = resolve_chat_template_content_format(template, None, "auto", tokenizer, model_config=model_config)
        self._is_string = form == "string"
        self._placeholder = _placeholder(model_config) if self._is_string and video else ""
        _, found, self.generation_prompt = self.render(_MARK, video=video).partition(_MARK)
        """The text after the instruction, which starts the model's turn."""
        if not found:
            raise TemplateError("the model's chat template drops the instruction: choose another model")

    def render(self, instruction: str, *, video: bool = True) -> str:
        """The prompt. The video, if there is one, comes first, so that all instructions share a prefix.

        Raises:
            TemplateError: if the template fails.
        """
        return self._apply([self._message(instruction, video=video)], add_generation_prompt=True)

    @property
    def end_of_turn(self) -> str:
        """The template's text after an answer; empty if it cannot be determined."""
        try:
            whole = self._apply([self._message("", video=self._video), {"role": "assistant", "content": _MARK}])
        except TemplateError:  # a template for a single turn
            return ""
        return whole.partition(_MARK)[2]

    def _message(self, instruction: str, *, video: bool) -> dict[str, Any]:
        if self._is_string:
            return {"role": "user", "content": f"{self._placeholder}\n{instruction}" if video else instruction}
        parts = [{"type": "video"}] if video else []
        return {"role": "user", "content": [*parts, {"type": "text", "text": instruction}]}

    def _apply(self, messages: list[dict[str, Any]], **arguments: Any) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=self._template, tokenize=False, **self.arguments, **arguments
                )
            )
        except Exception as error:  # templates are programs
            subject, other = ("a video", "a model whose template takes videos")
            if not self._video:
                subject, other = ("an instruction", "another model")
            raise TemplateError(
                f"the model's chat template fails on {subject} ({type(error).__name__}: {error}): choose {other}"
            ) from error

    def _checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if unknown := arguments.keys() - self._supported(arguments).keys():
            raise TemplateError(
                f"CAPTION_CHAT_TEMPLATE_KWARGS contains {', '.join(sorted(unknown))}, which the model's chat template "
                "does not use: remove it"
            )
        return arguments

    def _supported(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The ``arguments`` that the template uses."""
        from transformers import PreTrainedTokenizerBase
        from vllm.renderers.hf import resolve_chat_template_kwargs

        accepted = resolve_chat_template_kwargs(
            self._tokenizer, self._template, dict(arguments), raise_on_unexpected=False
        )
        ours = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
        return {name: value for name, value in accepted.items() if name not in ours}


def _default(found: Any) -> str | None:
    """The default template: vLLM returns all templates of a processor that has several."""
    if isinstance(found, list):
        found = {one["name"]: one["template"] for one in found}
    if isinstance(found, Mapping):
        found = found.get("default")
    return None if found is None else str(found)


def _placeholder(model_config: Any) -> str:
    """The placeholder of a video, for templates that take messages as strings."""
    from vllm.model_executor.model_loader import get_model_cls

    placeholder = get_model_cls(model_config).get_placeholder_str("video", 1)
    if placeholder is None:
        raise TemplateError(
            "the model's chat template takes only text, and vLLM has no placeholder for its videos: choose a model "
            "whose template takes videos"
        )
    return str(placeholder)
