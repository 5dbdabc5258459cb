"""Texts of clips, for SLP: captions by clip name, glosses through a template, and the tokens that a batch carries."""

from __future__ import annotations

from slrfast.data.text_encoder import TextEncoder, TextEncoderError, tiny_text_encoder

__all__ = ["TextEncoder", "TextEncoderError", "tiny_text_encoder"]
