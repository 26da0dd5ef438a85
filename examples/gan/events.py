"""Events that the GAN's step fires beside those of every engine; heard on the ranks and on the driver alike."""

from workers import EventEnum


class GanEvents(EventEnum):
    DISCRIMINATOR_UPDATED = "discriminator_updated"
    GENERATOR_UPDATED = "generator_updated"
