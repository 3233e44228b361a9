"""Post-training quantization: from a float network to int8, with a few hundred images."""
