"""`python -m tidelog_broker`: the same as the command `tidelog`."""

from .cli import main

if __name__ == "__main__":
    main()
