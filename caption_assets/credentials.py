"""Detection of credentials in settings: Dagster stores the configuration and shows it in its UI and API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from caption_assets.store.failure import url_has_credentials

_WORDS = frozenset(
    {"apikey", "auth", "authorization", "bearer", "credential", "credentials", "key", "keys"}
    | {"passphrase", "passwd", "password", "passwords", "pwd", "secret", "secrets", "token"}
)
"""Words of a name that mark its value as a credential. ``tokenizer`` and ``max_num_batched_tokens`` contain none."""
_FORMS = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|(AKIA|ASIA)[A-Z0-9]{16}\b|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,})"
    r"|\bBearer\s+\S|-----BEGIN "
)
"""Credentials recognized by their form: tokens of the Hub, AWS, OpenAI and GitHub, and private keys."""
_SPECIAL_TOKEN = re.compile(r"<.*>|\[.*\]", re.DOTALL)
"""A tokenizer's special token, such as ``<|image_pad|>``, which is not a credential."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def find_credential(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first credential in nested values.

    Returns:
        Path, such as ``kv_transfer_config.password``, and value; None if there is none.
    """
    return next(_credentials("", values, named=False), None)


def is_credential(text: str) -> bool:
    """Whether a text has the form of a credential, or is a URL that contains one."""
    return bool(_FORMS.search(text)) or url_has_credentials(text)


def mentions_credential(text: str) -> bool:
    """Whether a text that could not be parsed may contain named credentials."""
    return is_credential(text) or any(map(_names_credential, _NAME.findall(text)))


def is_hub_token(path: str, value: str) -> bool:
    """Whether a credential is one of the Hugging Face Hub, whose clients read ``HF_TOKEN``."""
    return value.startswith("hf_") or path.rpartition(".")[2].lower().replace("-", "_") in (
        "hf_token",
        "use_auth_token",
    )


def _credentials(path: str, value: object, *, named: bool) -> Iterator[tuple[str, str]]:
    match value:
        case dict():
            for key, inner in value.items():
                below = f"{path}.{key}" if path else str(key)
                yield from _credentials(below, inner, named=named or _names_credential(str(key)))
        case list():
            for number, inner in enumerate(value):
                yield from _credentials(f"{path}[{number}]", inner, named=named)
        case str():
            stripped = value.strip()
            if (named and stripped and not _SPECIAL_TOKEN.fullmatch(stripped)) or is_credential(stripped):
                yield path, stripped


def _names_credential(name: str) -> bool:
    return not _WORDS.isdisjoint(word.lower() for word in _WORD.findall(name))
