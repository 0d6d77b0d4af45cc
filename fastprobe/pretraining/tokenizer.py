"""Training of a tokenizer on the text that a model is trained on."""

from __future__ import annotations

from typing import Any

from fastprobe.data.documents import documents

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""The special tokens of BERT, by their names in Transformers."""


def train_tokenizer(text: Any, vocab_size: int, text_column: str = "text") -> Any:
    """Train a lower-case byte-level BPE tokenizer with BERT's special tokens.

    The same text always gives the same tokenizer. This is why it is not WordPiece: the WordPiece trainer of the library
    ``tokenizers`` numbers the tokens differently in every process.

    Args:
        text: as for :func:`fastprobe.token_batches`.
        vocab_size: largest size of the vocabulary, including special tokens and the 256 bytes. A short text gives
            fewer tokens.
        text_column: name of the text column of ``.jsonl`` files and datasets.

    Returns:
        a Hugging Face ``PreTrainedTokenizerFast``.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Runs of spaces become one space: tokens of indentation would be easy to predict.
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.BertNormalizer(lowercase=True), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (piece for document in documents(text, text_column) for piece in document)
    tokenizer.train_from_iterator(pieces, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)
