"""The systems and ops as the field writes them, in eager PyTorch: what every ratio is measured against."""
