"""Fine-tuning with LoRA Dropout: tiling, objective, a plain loop and a Trainer."""
