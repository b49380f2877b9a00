"""OpenCV, which the pictures are drawn with. It is optional: importing this module without it names the pip command."""

from __future__ import annotations

from pipeline.installation import require

require("atelier", "drawing atelier's pictures")

import cv2  # noqa: E402  # only after the check

__all__ = ["cv2"]
