"""The paper's plugin: d modules that share one weight, each through its own mask, for any method with matrices."""
