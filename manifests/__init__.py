"""Manifests that ship with the package: one TOML file for each data set and view."""
