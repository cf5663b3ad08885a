"""`python -m labelmesh` is the `labelmesh` command."""

from .cluster.cli import main

if __name__ == "__main__":
    main()
