"""What the reports count: parameters, FLOPs, memory and rank, beside the figures of the paper."""
