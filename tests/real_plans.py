"""Plans of scans of real models, from tiny models of their families and the widths of the real ones."""

from fastprobe.models.points import Element
from fastprobe.models.resolve import resolve
from fastprobe.scan.plan import ScanOptions, ScanPlan
from fastprobe.testing.tiny_models import FAMILIES

PLANS = {"BERT-base": ("bert", 768, 3072), "8B": ("llama", 4096, 14_336)}
"""Name -> family, width of the states, width of the MLP."""


def plan_of(name: str, folds: int = 5):
    """Return the sums of a scan of all elements of every layer, and those of an inner layer."""
    family, d_model, d_mlp = PLANS[name]
    points = resolve(FAMILIES[family]().eval())
    elements = tuple(Element(element, layer, layer + 1) for element in points.elements for layer in range(3))
    reads = points.read_by(elements)
    widths = {point: d_mlp if point.name == "mlp_act" else d_model for point in reads}
    plan = ScanPlan.of(points, widths, ScanOptions(elements, folds, "least-squares", "auto", False))
    return plan.moments, plan.stages[1]
