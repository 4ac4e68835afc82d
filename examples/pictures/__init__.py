"""Pictures of example programs, where they are too long to be in the program."""
