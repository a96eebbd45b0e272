"""From a run file to result.json: settings, the one loop, checkpoints, results."""
