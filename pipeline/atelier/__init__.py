"""Atelier: pictures of our own, drawn from a number. See render.py for the API, CONTRIBUTING for adding to it."""

from pipeline.atelier.render import STYLES, SUBJECTS, Picture, caption_with_style, cell, metadata, picture, png_bytes

__all__ = ["STYLES", "SUBJECTS", "Picture", "caption_with_style", "cell", "metadata", "picture", "png_bytes"]
