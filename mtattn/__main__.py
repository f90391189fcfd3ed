"""`python -m mtattn` is the same program as `mtattn`."""

from mtattn.cli import main

if __name__ == "__main__":
    main()
