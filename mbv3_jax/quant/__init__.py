"""Post-training quantization: from a float network to one for int8, with a few hundred images."""
