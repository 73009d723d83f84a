"""The entry point: `auxmae`, and `python -m auxmae`."""


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being imported shows no traceback either."""
    try:
        from auxmae.cli import interrupts

        interrupts.watch()
        from auxmae.cli.app import main as run

        run()
    except KeyboardInterrupt:
        from auxmae.cli import interrupts

        interrupts.end()


if __name__ == "__main__":
    main()
