"""rdmpipe: retrieval databases from art collections, and retrieval-augmented diffusion over prompt lists."""

import sys

if sys.platform == "win32":
    raise ImportError(
        "rdmpipe runs on Linux and macOS; this is Windows, which has no POSIX file locks and process groups. Use WSL 2: run "
        "`wsl --install`, then install rdmpipe inside it"
    )
