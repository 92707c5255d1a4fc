"""Files that are there whole or not at all, and numbers in forms that every reader accepts."""
