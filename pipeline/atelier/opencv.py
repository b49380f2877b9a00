"""OpenCV, with which the pictures are drawn. It is optional: without it, importing this module raises the pip command."""

from __future__ import annotations

from pipeline.installation import require

require("atelier", "drawing atelier's pictures")

import cv2  # noqa: E402  # only after the check

__all__ = ["cv2"]
