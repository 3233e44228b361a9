"""NetAdapt (Yang et al., arXiv 1804.03230; MobileNetV3 section 4.2): networks made narrower."""
