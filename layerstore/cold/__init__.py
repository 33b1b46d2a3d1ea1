"""The cold tier: contents that no image in use needs, compressed with the help of each other in cold packs."""
