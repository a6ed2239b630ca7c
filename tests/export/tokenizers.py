"""Small tokenizers of each kind, trained on a few sentences and saved as trainers' are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = (
    "A red car drives along a wet road at night. Its lights are on, and the rain falls.",
    "Two people walk a dog through a park in autumn. The leaves are yellow.",
    "\u4e00\u8f86\u7ea2\u8272\u7684\u6c7d\u8f66\u5728\u8def\u4e0a\u884c\u9a76\u3002\u5929\u5728\u4e0b\u96e8\u3002",
)


def byte_level_bpe() -> Tokenizer:
    """As of Qwen: bytes, and no special tokens are added."""
    found = Tokenizer(models.BPE())
    found.normalizer = normalizers.NFC()
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return found


def bpe_with_ends() -> Tokenizer:
    """As of CLIP: in lower case, with a token at each end."""
    found = Tokenizer(models.BPE(unk_token="<|end|>", end_of_word_suffix="</w>"))
    found.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|start|>", "<|end|>"], end_of_word_suffix="</w>")
    found.train_from_iterator(SENTENCES, trainer)
    found.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 0), ("<|end|>", 1)]
    )
    return found


def unigram() -> Tokenizer:
    """As of T5: sentencepiece's unigrams, with a token at the end."""
    found = Tokenizer(models.Unigram())
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["</s>", "<unk>"], unk_token="<unk>")
    found.train_from_iterator(SENTENCES, trainer)
    found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return found


def word_piece() -> Tokenizer:
    """As of BERT."""
    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    found.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return found


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": byte_level_bpe,
    "BPE with ends": bpe_with_ends,
    "Unigram": unigram,
    "WordPiece": word_piece,
}


def save_tokenizer(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """Save a tokenizer with the configuration of transformers, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
