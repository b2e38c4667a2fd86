"""Where each setting of a preset comes from, read from the comments of the files that it is composed of."""
