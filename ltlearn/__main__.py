"""Run the command line as `python -m ltlearn`, which `torchrun -m ltlearn` needs."""

from ltlearn.cli import main

if __name__ == "__main__":
    main()
