"""The parts of `tools/pretrain_backbone.py`."""
