"""Adapters on disk: files of our own, and those of peft."""
