"""Data: embedded assets, local files and hub names; splits; tokenised examples; losses and metrics of each task."""
