"""Fetching over http(s): cached downloads, and pictures from addresses that nobody vouches for."""
