"""The plugin of the paper: d modules that see one weight through masks of their own, for any method with matrices."""
