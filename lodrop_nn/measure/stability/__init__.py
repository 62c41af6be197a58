"""How the solution moves when one training example is left out or replaced."""

from lodrop_nn.measure.stability.convexity import Convexity, strongly_convex
from lodrop_nn.measure.stability.measure import stability
from lodrop_nn.measure.stability.settings import StabilitySettings

__all__ = ["Convexity", "StabilitySettings", "stability", "strongly_convex"]
