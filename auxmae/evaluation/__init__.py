"""What a trained model is worth: reconstruction error and frozen features, always beside their floors."""

from auxmae.evaluation.reconstruction import ReconstructionResult, evaluate_reconstruction
from auxmae.evaluation.reconstruction_floors import interpolation_floor, mean_floor

__all__ = ["ReconstructionResult", "evaluate_reconstruction", "interpolation_floor", "mean_floor"]
