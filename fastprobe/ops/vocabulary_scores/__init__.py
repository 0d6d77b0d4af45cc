"""The operation ``vocabulary_scores``."""

from fastprobe.ops.vocabulary_scores import triton as triton
from fastprobe.ops.vocabulary_scores.api import VocabularyBaseline as VocabularyBaseline
from fastprobe.ops.vocabulary_scores.api import VocabularyScores as VocabularyScores
from fastprobe.ops.vocabulary_scores.api import vocabulary_scores as vocabulary_scores
