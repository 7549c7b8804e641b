"""What each command does once its options are right, in a file of the command's name."""
