"""Weights from elsewhere and for elsewhere: official files, ImageNet MAE, one file with its config, exported graphs."""
