"""Fetching over http(s): cached downloads, and pictures from untrusted addresses."""
