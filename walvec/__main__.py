"""`python -m walvec` is the command `walvec`."""

from walvec.cli import main

if __name__ == "__main__":
    main()
