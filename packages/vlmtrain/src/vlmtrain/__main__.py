"""`python -m vlmtrain`."""

from vlmtrain.cli import main

if __name__ == "__main__":
    main()
