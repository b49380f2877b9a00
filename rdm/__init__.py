"""The retrieval-augmented diffusion model (RDM): pure torch and diffusers, no disk layout, no Ray."""
