"""Every operation as its equation in plain torch: ground truth of the tests, baseline and universal fallback."""
