"""A model's chat template: the whole prompt for one video and one instruction, in the model's own form."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from caption_assets.errors import CaptionAssetsError

NO_THINKING = {"enable_thinking": False, "thinking": False}
"""Template arguments that switch reasoning off, as far as a template knows them: Qwen3.5's and GLM's, and Kimi's."""
_MARK = "caption-assets-instruction"
"""Text that no template contains, to find the instruction's place in a prompt."""


class TemplateError(CaptionAssetsError):
    """A chat template that makes no prompt for a video, or does not know an argument."""


class Chat:
    """Renders prompts by the chat template of a model: its processor's, or else its tokenizer's.

    Args:
        model_config: vLLM's configuration of the model.
        tokenizer: the model's.
        arguments: given to the template beside the message, such as ``enable_thinking``.

    Raises:
        TemplateError: if there is no template, it does not know an argument, or it drops the instruction.
    """

    def __init__(self, model_config: Any, tokenizer: Any, arguments: Mapping[str, Any]) -> None:
        from vllm.renderers.hf import resolve_chat_template, resolve_chat_template_content_format

        self._tokenizer = tokenizer
        template = _default(resolve_chat_template(tokenizer, None, None, model_config=model_config))
        if template is None:
            raise TemplateError(
                "the model has no chat template, or several and none called 'default': choose one that was trained on "
                "instructions"
            )
        self._template = template
        self.arguments = {**self._known(NO_THINKING), **self._checked(arguments)}
        form = resolve_chat_template_content_format(template, None, "auto", tokenizer, model_config=model_config)
        self._placeholder = _placeholder(model_config) if form == "string" else None
        _, found, self.generation_prompt = self.render(_MARK).partition(_MARK)
        """What follows the instruction in a prompt: the head of the model's own turn."""
        if not found:
            raise TemplateError("the model's chat template drops the instruction: choose another model")

    def render(self, instruction: str) -> str:
        """The whole prompt: the video first, so that all instructions share a prefix.

        Raises:
            TemplateError: if the template raises.
        """
        return self._rendered([self._question(instruction)], add_generation_prompt=True)

    @property
    def end_of_turn(self) -> str:
        """What the template puts after an answer; empty if that cannot be found."""
        try:
            whole = self._rendered([self._question(""), {"role": "assistant", "content": _MARK}])
        except TemplateError:  # a template for one question
            return ""
        return whole.partition(_MARK)[2]

    def _question(self, instruction: str) -> dict[str, Any]:
        if self._placeholder is not None:
            return {"role": "user", "content": f"{self._placeholder}\n{instruction}"}
        return {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": instruction}]}

    def _rendered(self, messages: list[dict[str, Any]], **arguments: Any) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=self._template, tokenize=False, **self.arguments, **arguments
                )
            )
        except Exception as error:  # a template is a program
            raise TemplateError(
                f"the model's chat template fails on a video ({type(error).__name__}: {error}): choose a model whose "
                "template takes videos"
            ) from error

    def _checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if unknown := arguments.keys() - self._known(arguments).keys():
            raise TemplateError(
                f"CAPTION_CHAT_TEMPLATE_KWARGS gives {', '.join(sorted(unknown))}, which the model's chat template "
                "does not use: remove it"
            )
        return arguments

    def _known(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``arguments`` that the template itself uses."""
        from transformers import PreTrainedTokenizerBase
        from vllm.renderers.hf import resolve_chat_template_kwargs

        accepted = resolve_chat_template_kwargs(
            self._tokenizer, self._template, dict(arguments), raise_on_unexpected=False
        )
        ours = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
        return {name: value for name, value in accepted.items() if name not in ours}


def _default(found: Any) -> str | None:
    """The default of a model's templates: a processor may have several, which vLLM passes on as they are stored."""
    if isinstance(found, list):
        found = {one["name"]: one["template"] for one in found}
    if isinstance(found, Mapping):
        found = found.get("default")
    return None if found is None else str(found)


def _placeholder(model_config: Any) -> str:
    """What stands for a video in the text that a template takes as a string."""
    from vllm.model_executor.model_loader import get_model_cls

    placeholder = get_model_cls(model_config).get_placeholder_str("video", 1)
    if placeholder is None:
        raise TemplateError(
            "the model's chat template takes text alone, and vLLM knows no placeholder for its videos: choose a model "
            "whose template takes videos"
        )
    return str(placeholder)
