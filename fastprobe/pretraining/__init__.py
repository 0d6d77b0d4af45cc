"""BERT and its variants trained from scratch on text."""

from fastprobe.pretraining.corpus import Corpus as Corpus
from fastprobe.pretraining.family import Trained as Trained
from fastprobe.pretraining.family import pretrain_variants as pretrain_variants
from fastprobe.pretraining.result import Pretraining as Pretraining
from fastprobe.pretraining.run import pretrain as pretrain
