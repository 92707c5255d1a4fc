"""Federated learning: who holds what, how rounds go, how clients' states are put together."""
