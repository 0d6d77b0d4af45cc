"""How linear the parts of a transformer are, and what happens when its layers are reordered."""

from fastprobe import orders as orders
from fastprobe.commutativity import OrderEffects as OrderEffects
from fastprobe.commutativity import commutativity as commutativity
from fastprobe.fit import LinearFit as LinearFit
from fastprobe.linear import LeastSquares as LeastSquares
from fastprobe.linear import Solution as Solution
from fastprobe.linearity import LinearityScan as LinearityScan
from fastprobe.linearity import linearity as linearity
from fastprobe.moments import Moments as Moments
from fastprobe.results import load as load
from fastprobe.text import token_batches as token_batches
from fastprobe.version import __version__ as __version__
