"""Families of encoders whose layers are exact copies of BERT's."""

from __future__ import annotations

BERT_FAMILIES = {
    f"transformers.models.{module}.modeling_{module}": name
    for module, name in {
        "bert": "Bert",
        "roberta": "Roberta",
        "xlm_roberta": "XLMRoberta",
        "camembert": "Camembert",
        "electra": "Electra",
    }.items()
}
"""Modelling files of Transformers -> the prefix of their class names."""
