"""What each command does, a module for each group: arguments in, files and the text to print out. `cli` prints it."""
