"""`python -m auxmae`."""

from auxmae.cli.app import main

main()
