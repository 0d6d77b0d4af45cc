"""Pretrain BERT and its variants from scratch as masked language models."""

from fastprobe.pretraining.corpus import Corpus as Corpus
from fastprobe.pretraining.result import Pretraining as Pretraining
from fastprobe.pretraining.run import pretrain as pretrain
from fastprobe.pretraining.variant_set import TrainedVariant as TrainedVariant
from fastprobe.pretraining.variant_set import pretrain_variants as pretrain_variants
