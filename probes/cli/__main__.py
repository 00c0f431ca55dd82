"""`python -m probes.cli`: the program where it is not on the path."""

from probes.cli.program import main

if __name__ == "__main__":
    main()
