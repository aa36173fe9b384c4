"""From raw images to prepared slices: formats, splits, the sealed test, the phantom."""
