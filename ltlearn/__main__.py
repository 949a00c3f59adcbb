"""`python -m ltlearn`, as `torchrun -m ltlearn` starts it."""

from ltlearn.cli import main

if __name__ == "__main__":
    main()
