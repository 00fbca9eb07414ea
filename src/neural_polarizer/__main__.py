"""`python -m neural_polarizer` is the command `polarize`."""

from .cli import main

main()
