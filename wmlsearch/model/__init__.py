"""The U-Net and its training: one report per epoch, with torch alone."""
