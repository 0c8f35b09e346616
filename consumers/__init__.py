"""Ready-made consumers, made of the public names of signalbus: programs to run or to copy, not part of the package."""
