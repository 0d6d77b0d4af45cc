"""The operations: each with its contract and definition, and every implementation of it."""

from fastprobe.ops._linear_layers import Norm as Norm
from fastprobe.ops._native import instruction_set as instruction_set
from fastprobe.ops._native import instruction_sets as instruction_sets
from fastprobe.ops._native import peak_operations as peak_operations
from fastprobe.ops._operation import BACKENDS as BACKENDS
from fastprobe.ops._platform import FastLinear as FastLinear
from fastprobe.ops._platform import linear as linear
from fastprobe.ops._platform import matmul as matmul
from fastprobe.ops._rows import pick_rows as pick_rows
from fastprobe.ops._tuning import Tuned as Tuned
from fastprobe.ops._tuning import tuning as tuning
from fastprobe.ops.add_norm import add_norm as add_norm
from fastprobe.ops.attention_sublayer import attention_sublayer as attention_sublayer
from fastprobe.ops.bias_gelu import bias_gelu_ as bias_gelu_
from fastprobe.ops.ffn_sublayer import ffn_sublayer as ffn_sublayer
from fastprobe.ops.gram import gram_ as gram_
from fastprobe.ops.score import ResidualSums as ResidualSums
from fastprobe.ops.score import score as score
from fastprobe.ops.unit_sum import UnitSum as UnitSum
from fastprobe.ops.unit_sum import unit_sum as unit_sum
from fastprobe.ops.varlen_attention import varlen_attention as varlen_attention
from fastprobe.ops.vocabulary_scores import VocabularyBaseline as VocabularyBaseline
from fastprobe.ops.vocabulary_scores import VocabularyScores as VocabularyScores
from fastprobe.ops.vocabulary_scores import vocabulary_scores as vocabulary_scores
