"""`python -m pipeline.cli`: systemd units, crontabs and submitted jobs call this."""

from pipeline.cli.app import main

main()
