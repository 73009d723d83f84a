"""Measurements: the same work done by AuxMAE and by others, in turn, on this machine."""
