"""The commands: `python -m rl COMMAND`, or `rl COMMAND` where the package is installed."""

from rl.commands import main

if __name__ == "__main__":
    main()
