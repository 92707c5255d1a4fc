"""Per-sample clipping, noise, sampling and accounting."""
