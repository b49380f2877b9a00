"""rdmpipe: retrieval databases from art collections, and retrieval-augmented diffusion over prompt lists."""
