"""`python -m pipeline.cli`: what units, crontabs and submitted jobs call."""

from pipeline.cli.app import main

main()
