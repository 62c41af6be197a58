"""Prediction with LoRA Dropout: the ensemble over masks and the mean."""
