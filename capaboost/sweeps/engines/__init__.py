"""Where a sweep's runs are done: workers here, a Ray cluster, or Slurm."""
