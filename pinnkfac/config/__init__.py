"""From words to settings: Hydra, PDE files, stored configurations."""
