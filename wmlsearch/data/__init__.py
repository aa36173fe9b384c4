"""Raw images to prepared slices."""
