"""Training: configs, data, augmentation, losses and the loop."""
