"""What the reports count: parameters, FLOPs, memory and rank, compared with the figures of the paper."""
