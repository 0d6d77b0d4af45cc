"""How linear the parts of a transformer are, and what happens when its layers are reordered."""

from fastprobe import orders as orders
from fastprobe.ablation import Ablations as Ablations
from fastprobe.ablation import ablation as ablation
from fastprobe.commutativity import OrderEffects as OrderEffects
from fastprobe.commutativity import commutativity as commutativity
from fastprobe.commutator import Commutators as Commutators
from fastprobe.commutator import commutator as commutator
from fastprobe.commutator import linear_commutator as linear_commutator
from fastprobe.fit import LinearFit as LinearFit
from fastprobe.linear import LeastSquares as LeastSquares
from fastprobe.linear import Solution as Solution
from fastprobe.linearity import LinearityScan as LinearityScan
from fastprobe.linearity import linearity as linearity
from fastprobe.models.linear_mlp import write_linear_mlp_ as write_linear_mlp_
from fastprobe.moments import Moments as Moments
from fastprobe.permute import parallel_layers as parallel_layers
from fastprobe.permute import permute_layers as permute_layers
from fastprobe.permute import repeat_layers as repeat_layers
from fastprobe.permute import reverse_layers as reverse_layers
from fastprobe.permute import skip_layers as skip_layers
from fastprobe.permute import swap_layers as swap_layers
from fastprobe.results import load as load
from fastprobe.skips import skip_scale as skip_scale
from fastprobe.text import token_batches as token_batches
from fastprobe.version import __version__ as __version__
