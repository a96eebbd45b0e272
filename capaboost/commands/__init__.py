"""The commands, a file each, with `main(arguments, prog)`; nothing heavy is imported before the flags are read."""
