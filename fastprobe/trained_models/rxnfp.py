"""Convert the masked language model of chemical reactions."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

SYMBOL = r"\[[^\]]+\]|Br|Cl|>>|%[0-9]{2}|."
"""A token of SMILES: an atom in brackets, a halogen of two letters, the arrow, a ring closure, or one character."""


def convert(files: Path, folder: Path) -> None:
    """Write the encoder with its masked-language-model head, and a tokenizer of its vocabulary.

    Args:
        files: folder with the files of the wheel.
        folder: where to write.
    """
    source = files / "rxnfp" / "models" / "transformers" / "bert_pretrained"
    config = BertConfig.from_json_file(source / "config.json")
    model = BertForMaskedLM(config)
    weights = torch.load(source / "pytorch_model.bin", map_location="cpu", weights_only=True)
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]  # one tensor
    missing, _ = model.load_state_dict(weights, strict=False)  # the pooler and next-sentence head are left out
    assert not missing, missing
    model.save_pretrained(folder)
    _tokenizer((source / "vocab.txt").read_text().split("\n")).save_pretrained(folder)


def _tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    tokens = {token: number for number, token in enumerate(vocabulary) if token}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SYMBOL), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokens[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", model_max_length=512, **names)
