"""The entry point: `auxmae`, and `python -m auxmae`."""

import os


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being imported shows no traceback either."""
    try:
        from auxmae.cli import interrupts

        interrupts.watch()
        spin_briefly()
        from auxmae.cli.app import main as run

        run()
    except KeyboardInterrupt:
        from auxmae.cli import interrupts

        interrupts.end()


def spin_briefly() -> None:
    """Lets PyTorch's threads wait for each other in a spin of microseconds, then asleep; to be called before PyTorch is imported.

    By default GNU OpenMP spins a hundred times longer.  On a machine that others use too, that time is taken from the very
    thread that is waited for: on two cores with two busy processes a training step took more than thirty times as long.
    Sleeping at once would cost half the speed of a machine that is free.  What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


if __name__ == "__main__":
    main()
