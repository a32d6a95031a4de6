"""`python -m jaxdistill` is the `jaxdistill` command."""

from jaxdistill.cli import main

if __name__ == "__main__":
    main()
