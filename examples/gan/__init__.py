"""A GAN that draws digits: two networks, two optimizers, events of its own."""
