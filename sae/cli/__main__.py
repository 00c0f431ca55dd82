"""`python -m sae.cli` is `sae`: what torchrun starts."""

from sae.cli.program import main

if __name__ == "__main__":
    main()
