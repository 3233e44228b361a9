"""A run on disk and its processes: configuration, folder, checkpoints, metrics, signals."""
