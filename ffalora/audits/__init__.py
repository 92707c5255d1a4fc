"""Attacks on the mechanism itself: what a private step leaks at least, beside the ε that is claimed."""
