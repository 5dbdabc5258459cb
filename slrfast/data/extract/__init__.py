"""Video in, keypoints out, through a detector that is installed here or in another environment."""

from slrfast.data.extract.backends import BACKENDS, MODES
from slrfast.data.extract.process import Extracted, ExtractionError, Extractor

__all__ = ["BACKENDS", "MODES", "Extracted", "ExtractionError", "Extractor"]
