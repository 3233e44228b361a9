"""Data: sources, decoding, loading on the host; augmentation on the device."""
