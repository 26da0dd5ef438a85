"""`python -m orchestrator`: the `rankfire` command, where no script of that name is installed.

What the command does is in `cli/main.py`.
"""

from orchestrator.cli.main import main

main()
