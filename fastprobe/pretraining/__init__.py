"""BERT and its variants trained from scratch on text."""

from fastprobe.pretraining.result import Pretraining as Pretraining
from fastprobe.pretraining.run import pretrain as pretrain
