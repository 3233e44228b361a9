"""MobileNetV3 in JAX: the networks, their training, their ablations."""
