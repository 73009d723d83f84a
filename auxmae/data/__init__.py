"""Files → normalised (C, H, W) tensors."""
