"""Evidence that a converted model is the trained one: a wrong weight or tokenizer gives numbers like chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from fastprobe.data.demo import demo_text
from fastprobe.errors import InputError

MARGIN = 0.8
"""Largest loss of a trained language model, as a part of the entropy of the text's single tokens."""

REACTIONS = (
    "CC(=O)O.CCO>>CC(=O)OCC",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1",
    "OB(O)c1ccccc1.Brc1ccccc1>>c1ccc(-c2ccccc2)cc1",
    "O=C(O)c1ccccc1.CO>>COC(=O)c1ccccc1",
    "O=[N+]([O-])c1ccccc1.[H][H]>>Nc1ccccc1",
    "CC(=O)OC(C)=O.Oc1ccccc1C(=O)O>>CC(=O)Oc1ccccc1C(=O)O",
)
"""Textbook reactions: esterification, amide formation, Suzuki coupling, hydrogenation, acetylation."""

PAIRS = (
    ("A man is playing a guitar.", "Someone plays an instrument."),
    ("The stock market fell sharply today.", "Shares dropped a lot on Wall Street."),
    ("She is cooking dinner for her family.", "A woman prepares a meal at home."),
)
"""Pairs of sentences with one meaning each."""


def check(name: str, folder: Path) -> str:
    """Return one line of evidence for a converted model.

    Args:
        name: of the model in the catalogue.
        folder: the converted model.

    Raises:
        InputError: the numbers of the model are like chance.
    """
    evidence = {"smollm2": _next_tokens, "rxnfp": _masked_tokens}.get(name, _paraphrases)
    with torch.inference_mode():
        return evidence(name, folder)


def _next_tokens(name: str, folder: Path) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer("\n".join(list(demo_text().values())[:20])).input_ids[:2048]).view(-1, 256)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    logits = model(input_ids=ids).logits[:, :-1]
    return _loss_line(name, "next-token loss on the demo text", logits.flatten(0, 1), ids[:, 1:].flatten())


def _masked_tokens(name: str, folder: Path) -> str:
    """Compare the loss at every token, each masked in turn, with the entropy of single tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    logits, targets = [], []
    for reaction in REACTIONS:
        ids = torch.tensor(tokenizer(reaction).input_ids)
        places = torch.arange(1, len(ids) - 1)
        masked = ids.repeat(len(places), 1)
        masked[torch.arange(len(places)), places] = tokenizer.mask_token_id
        logits.append(model(input_ids=masked).logits[torch.arange(len(places)), places])
        targets.append(ids[places])
    return _loss_line(name, "masked-token loss on six reactions", torch.cat(logits), torch.cat(targets))


def _loss_line(name: str, what: str, logits: Tensor, targets: Tensor) -> str:
    loss = float(F.cross_entropy(logits.float(), targets))
    chance = _entropy(targets.tolist())
    if not loss < MARGIN * chance:
        raise InputError(
            f"{name}: its {what} is {loss:.2f} nats, single tokens give {chance:.2f}; it was converted wrong"
        )
    return f"{what} {loss:.2f} nats; entropy of single tokens {chance:.2f}"


def _entropy(tokens: Sequence[int]) -> float:
    """Return the entropy of the tokens' own frequencies, -Σ p ln p, in nats."""
    shares = [count / len(tokens) for count in Counter(tokens).values()]
    return -sum(share * math.log(share) for share in shares)


def _paraphrases(name: str, folder: Path) -> str:
    """Compare the cosines of sentences with one meaning with those of all other pairs."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    prefix = "query: " if name == "e5-small" else ""  # with which e5 was trained
    batch = tokenizer([prefix + sentence for pair in PAIRS for sentence in pair], padding=True, return_tensors="pt")
    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][..., None]
    vectors = F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    cosines = vectors @ vectors.T
    pair = torch.arange(len(vectors)) // 2
    same = (pair[:, None] == pair) & ~torch.eye(len(vectors), dtype=torch.bool)
    least, most = float(cosines[same].min()), float(cosines[pair[:, None] != pair].max())
    if not least > most:
        raise InputError(
            f"{name}: the cosine of two paraphrases is {least:.2f}, that of two other sentences {most:.2f}; it was "
            "converted wrong"
        )
    return f"cosines of paraphrases from {least:.2f}, of other sentences up to {most:.2f}"
