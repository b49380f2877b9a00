"""Manifests shipped with the package: one TOML per data set and per view."""
