"""`python -m orchestrator`: the `rankfire` command."""

from orchestrator.cli.main import main

main()
