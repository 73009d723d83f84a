"""What a trained model is worth: reconstruction error and frozen features, always beside their floors."""

from auxmae.evaluation.floors import interpolation_floor, mean_floor
from auxmae.evaluation.reconstruction import ReconstructionResult, evaluate_reconstruction

__all__ = ["ReconstructionResult", "evaluate_reconstruction", "interpolation_floor", "mean_floor"]
