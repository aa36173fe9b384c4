"""The U-Net, its training, its use."""
