"""Check what a model file holds, before anything predicts with it."""
