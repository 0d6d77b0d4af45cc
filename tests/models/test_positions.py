"""Tables of positions: the longest sequence and padding on the left, in models of many families."""

import pytest
import torch
import transformers

import fastprobe as fp
from fastprobe.models.positions import most_tokens
from fastprobe.testing.tiny_models import tiny_batches
from tests.test_bad_inputs import ends_in_one_line, left_padded

BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 24,
}
AFTER_PADDING = {**BERT, "pad_token_id": 1}
DECODER = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100, "max_position_embeddings": 24}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "vocab_size": 100}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "Bert": (BERT, 24),
    "Electra": ({**BERT, "embedding_size": 16}, 24),
    "Albert": ({**BERT, "embedding_size": 16}, 24),
    "MegatronBert": (BERT, 24),
    "LayoutLM": (BERT, 24),
    "DistilBert": ({"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **DECODER}, 24),
    "Roberta": (AFTER_PADDING, 22),
    "XLMRoberta": (AFTER_PADDING, 22),
    "Camembert": (AFTER_PADDING, 22),
    "MPNet": (AFTER_PADDING, 22),
    "Data2VecText": (AFTER_PADDING, 22),
    "Longformer": ({**AFTER_PADDING, "attention_window": [4, 4]}, 22),
    "Esm": ({**AFTER_PADDING, "mask_token_id": 4, "position_embedding_type": "absolute"}, 22),
    "GPT2": ({**GPT2, **SPECIAL}, 24),
    "OpenAIGPT": (GPT2, 24),
    "GPTBigCode": ({**GPT2, **SPECIAL}, 24),
    "OPT": ({**DECODER, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32}, 24),
    "Bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, **SPECIAL}, None),
    "Llama": ({**BERT, **SPECIAL}, None),
}
"""Family -> its configuration, and the length of the longest sequence if a table of positions limits it."""


def build(family):
    torch.manual_seed(0)
    options, _ = FAMILIES[family]
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def runs(model, length):
    ids = torch.full((1, length), 5)
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_sequence_is_the_longest_that_the_model_runs(family):
    model, (_, longest) = build(family), FAMILIES[family]

    assert most_tokens(model) == longest
    if longest is None:
        assert runs(model, 40)
    else:
        assert runs(model, longest)
        assert family == "Longformer" or not runs(model, longest + 1)  # it pads to a multiple of its window


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_left_changes_nothing_or_is_refused(family):
    model = build(family)
    pad = getattr(model.config, "pad_token_id", None) or 0
    batches = tiny_batches(sequences=12, length=12)
    batches = [
        {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, pad)} for batch in batches
    ]

    def scores(batches):
        return torch.tensor(
            [row["r2"] for row in fp.linearity(model, batches, elements=["layer"], progress=False).rows]
        )

    found = []
    if ends_in_one_line(lambda: found.append(scores(left_padded(batches)))) is None:
        torch.testing.assert_close(found[0], scores(batches), atol=2e-3, rtol=1e-2)
