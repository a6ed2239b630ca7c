"""Choices: the sampling parameters of a one-token answer, and the probability of each choice."""

from __future__ import annotations

import math
from typing import Any

from caption_assets.captioning.output import ChoiceOutput
from caption_assets.errors import CaptionAssetsError


class SplitChoice(CaptionAssetsError):
    """A choice that is not one token of the model, or not a token of its own."""


class Choices:
    """The choices of a model's stages.

    Args:
        tokenizer: the model's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def tokens(self, output: ChoiceOutput) -> dict[int, str]:
        """The choices by token, in their order.

        Raises:
            SplitChoice: if a choice is several tokens, or two have the same token.
        """
        found: dict[int, str] = {}
        for choice in output.choices:
            tokens = self._tokenizer.encode(choice, add_special_tokens=False)
            if len(tokens) != 1:
                parts = " ".join(repr(self._tokenizer.decode([token])) for token in tokens)
                raise SplitChoice(
                    f"the choice {choice!r} is {len(tokens)} tokens of this model ({parts}), but must be one: use a "
                    "shorter or more common word, or letters that the prompt explains"
                )
            if tokens[0] in found:
                raise SplitChoice(
                    f"the choices {found[tokens[0]]!r} and {choice!r} are the same token of this model: rename one"
                )
            found[tokens[0]] = choice
        return found

    def sampling(self, output: ChoiceOutput) -> Any:
        """The sampling parameters for vLLM: one token, the most probable choice, with the log-probability of each."""
        import vllm

        tokens = list(self.tokens(output))
        return vllm.SamplingParams(
            temperature=0.0,
            max_tokens=1,
            allowed_token_ids=tokens,
            logprob_token_ids=tokens,
            detokenize=False,
        )

    def probabilities(self, output: ChoiceOutput, answer: Any) -> dict[str, float]:
        """The probability of each choice, among the choices, from vLLM's log-probabilities of the answer's token.

        It is the softmax over the choices' tokens (VQAScore, arXiv 2404.01291, normalizes over the whole vocabulary).
        """
        [found] = answer.logprobs
        tokens = self.tokens(output)
        highest = max(found[token].logprob for token in tokens)
        weights = {choice: math.exp(found[token].logprob - highest) for token, choice in tokens.items()}
        total = sum(weights.values())
        return {choice: weight / total for choice, weight in weights.items()}
