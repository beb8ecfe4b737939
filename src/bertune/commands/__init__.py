"""The commands of the command line, a module each; what they import at the top is light, the rest is inside `run`."""
