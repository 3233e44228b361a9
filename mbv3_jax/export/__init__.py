"""Trained networks as files for phones and servers: TFLite, ONNX, Core ML, StableHLO."""
